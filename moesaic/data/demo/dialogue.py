"""The domain of conversation: a user and an assistant settle an errand, as in `scenarios`.

Knows nothing about splits; its groups are the templates that conversations begin with.
"""

from collections.abc import Mapping, Sequence
from random import Random

from moesaic.data.demo.phrases import filled, open_slots, worded
from moesaic.data.demo.scenarios import Moves, Scenario, read_scenarios
from moesaic.data.demo.shapes import Exchange, Groups

DRAWN = 700, 900  # whole conversations, and beginnings of others, before splits are made


def groups(seed: int) -> Groups:
    """Conversations of all scenarios in turn, by the template of their first words; of some only the first exchange."""
    rng = Random(f"{seed} dialogue")
    known = read_scenarios()
    found: Groups = {}
    for number in range(sum(DRAWN)):
        scenario = known.scenarios[number % len(known.scenarios)]
        opening = rng.choice(scenario.openings)
        talk = Talk(scenario, known.moves, known.pools | scenario.pools, rng)
        talk.run(opening, turns=rng.randint(2, 3))
        found.setdefault(opening, []).append(talk.exchanges[: None if number < DRAWN[0] else 1])
    return found


class Talk:
    """A conversation in progress: its details, texts and wordings so far."""

    def __init__(self, scenario: Scenario, shared: Moves, pools: Mapping[str, Sequence], rng: Random):
        self.scenario, self.shared, self.rng = scenario, shared, rng
        # Two values for every detail: the right one, and another for misunderstandings.
        pairs = {slot: rng.sample(pool, 2) for slot, pool in pools.items()}
        self.slots = {slot: meant for slot, (meant, _) in pairs.items()}
        self.others = {slot: other for slot, (_, other) in pairs.items()}
        self.texts: list[str] = []
        self.wording: list[str] = []

    def say(self, template: str) -> None:
        """Add a message in the words of `template`."""
        skeleton = worded(template, self.rng)
        self.texts.append(filled(skeleton, self.slots))
        self.wording.append(skeleton)

    @property
    def exchanges(self) -> list[Exchange]:
        return [Exchange(*pair) for pair in zip(self.texts[::2], self.texts[1::2], strict=True)]

    def run(self, opening: str, turns: int) -> None:
        """Play the conversation, with up to `turns` messages of each side."""
        scenario, rng = self.scenario, self.rng
        self.say(opening)
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
            self.say(bye)

    def ask(self, slot: str, doubt: bool) -> None:
        question, answer = self.scenario.details[slot]
        self.say((self.shared.ready if self.scenario.check else "") + question)
        self.say(answer)
        if doubt:
            question, answer = self.shared.doubt
            self.slots |= {"heard": self.slots[slot], "misheard": self.others[slot]}
            self.say(question)
            self.say(answer)

    def answer_check(self) -> None:
        """Confirm the details, or correct one."""
        slot = self.rng.choice([*self.scenario.details, ""])
        if slot:
            self.slots |= {slot: self.others[slot], "old": self.slots[slot], "new": self.others[slot]}
        self.say(self.shared.correction if slot else self.shared.yes)
