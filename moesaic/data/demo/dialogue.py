"""The domain of conversation: a user and an assistant settle an errand or chat, along the lines of `scenarios`.

Knows nothing about splits; its groups are the wordings of whole conversations, whatever details fill them.
"""

from collections.abc import Mapping, Sequence
from random import Random

from moesaic.data.demo.phrases import filled, open_slots, worded
from moesaic.data.demo.scenarios import Moves, Scenario, read_scenarios

DRAWN = 2200  # conversations before duplicates are dropped and the splits are dealt


def groups(seed: int) -> dict[str, list[dict]]:
    """Conversations of every scenario in turn, by their wording."""
    rng = Random(f"{seed} dialogue")
    known = read_scenarios()
    found: dict[str, list[dict]] = {}
    for number in range(DRAWN):
        scenario = known.scenarios[number % len(known.scenarios)]
        talk = Talk(scenario, known.moves, known.pools | scenario.pools, rng)
        talk.run(turns=rng.randint(2, 5))
        found.setdefault("\n".join(talk.wording), []).append({"messages": talk.messages})
    return found


class Talk:
    """One conversation as it unfolds: the details settled so far, what was said, and how it was worded."""

    def __init__(self, scenario: Scenario, shared: Moves, pools: Mapping[str, Sequence], rng: Random):
        self.scenario, self.shared, self.rng = scenario, shared, rng
        # Two values for every detail: the one that is meant, and another to be mistaken for it.
        pairs = {slot: rng.sample(pool, 2) for slot, pool in pools.items()}
        self.slots = {slot: meant for slot, (meant, _) in pairs.items()}
        self.others = {slot: other for slot, (_, other) in pairs.items()}
        self.messages: list[dict[str, str]] = []
        self.wording: list[str] = []

    def say(self, template: str) -> None:
        """Let the one whose turn it is say `template`."""
        skeleton = worded(template, self.rng)
        role = "assistant" if len(self.messages) % 2 else "user"
        self.messages.append({"role": role, "content": filled(skeleton, self.slots)})
        self.wording.append(skeleton)

    def run(self, turns: int) -> None:
        """The whole conversation, each side speaking `turns` times where the scenario has that much to say."""
        scenario, rng = self.scenario, self.rng
        self.say(rng.choice(scenario.openings))
        missing = [slot for slot in scenario.details if slot not in open_slots(self.wording)]
        rng.shuffle(missing)
        moves = ["bye", *range(len(scenario.extras))] + ["doubt"] * bool(missing) + ["check"] * bool(scenario.check)
        chosen = rng.sample(moves, max(0, min(len(moves), turns - 1 - len(missing))))
        if not missing and not chosen:
            chosen = ["bye"]
        for number, slot in enumerate(missing):
            self.ask(slot, doubt="doubt" in chosen and number == 0)
        self.say(self.shared.ready + scenario.check if "check" in chosen else scenario.done)
        if "check" in chosen:
            self.answer_check()
            self.say(scenario.done)
        for move in chosen:
            if isinstance(move, int):
                question, answer = scenario.extras[move]
                self.say(question)
                self.say(answer)
        if "bye" in chosen:
            thanks, bye = self.shared.bye
            self.say(thanks)
            self.say(scenario.bye or bye)

    def ask(self, slot: str, doubt: bool) -> None:
        """The assistant asks for a detail; in doubt, once more."""
        question, answer = self.scenario.details[slot]
        self.say((self.shared.ready if self.scenario.check else "") + question)
        self.say(answer)
        if doubt:
            question, answer = self.shared.doubt
            self.slots |= {"heard": self.slots[slot], "misheard": self.others[slot]}
            self.say(question)
            self.say(answer)

    def answer_check(self) -> None:
        """The user confirms what the assistant has understood, or changes a detail."""
        slot = self.rng.choice([*self.scenario.details, ""])
        if slot:
            self.slots |= {slot: self.others[slot], "old": self.slots[slot], "new": self.others[slot]}
        self.say(self.shared.correction if slot else self.shared.yes)
