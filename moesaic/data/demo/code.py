"""The domain of program text: functions and imports of the Python standard library, and small functions on request.

Knows nothing about splits; its groups are modules of the library and wordings of `tasks`.
"""

from random import Random

from moesaic.data.demo.phrases import filled, raw, worded
from moesaic.data.demo.shapes import Exchange, Groups
from moesaic.data.demo.stdlib import Function, modules
from moesaic.data.demo.tables import table

PROMPT, RESPONSE = (60, 250), (100, 450)  # minimum and maximum number of characters of functions of the library
DRAWN = 1800  # small functions before splits are made
IMPORTS, FUNCTIONS = 3, 3  # at most, of each module of the library


def groups(seed: int) -> Groups:
    """Conversations by module and by wording of a task."""
    rng = Random(f"{seed} code")
    found = requested(rng)
    for name, module in modules().items():
        own = [exchange for function in module.functions if (exchange := continuation(function))]
        own = rng.sample(own, min(FUNCTIONS, len(own)))
        blocks = rng.sample(module.imports, min(IMPORTS, len(module.imports)))
        found[f"module {name}"] = [[exchange] for exchange in (*own, *(imported(block, rng) for block in blocks))]
    return found


def requested(rng: Random) -> Groups:
    """Small functions in turn: on request, or continued after their head."""
    written = table("tasks.yaml")
    found: Groups = {}
    for number in range(DRAWN):
        task = written["tasks"][number % len(written["tasks"])]
        slots = {slot: rng.choice(pool) for slot, pool in written["pools"].items()}
        wording = rng.randrange(len(task["requests"]))
        head, body = raw(task["code"][wording], slots), raw(task["body"], slots)
        it = raw(worded(task["requests"][wording], rng), slots)
        frame = worded(rng.choice(written["frames"]), rng)
        asked = rng.random() < 0.5
        exchange = Exchange(filled(frame, {"it": it}), f"{head}\n{body}") if asked else Exchange(head, body)
        found.setdefault(task["requests"][wording], []).append([exchange])
    return found


def imported(block: list[str], rng: Random) -> Exchange:
    """The first lines of a block of imports, and those after them."""
    cut = rng.randint(1, len(block) - 1)
    return Exchange("\n".join(block[:cut]), "\n".join(block[cut:]))


def continuation(function: Function) -> Exchange | None:
    """The head of a function and the lines after it, or None if either has an unsuitable length."""
    head, body, ends = function
    extra = 0  # lines of the body that lengthen a short head
    while len(prompt := "\n".join([*head, *body[:extra]]).rstrip()) < PROMPT[0] and extra < len(body):
        extra += 1
    cuts = ("\n".join(body[extra:end]).strip("\n") for end in ends if end > extra)
    response = max((text for text in cuts if len(text) <= RESPONSE[1]), key=len, default="")
    good = PROMPT[0] <= len(prompt) <= PROMPT[1] and len(response) >= RESPONSE[0]
    return Exchange(prompt, response) if good else None
