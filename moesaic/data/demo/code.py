"""The domain of program text: functions of the Python standard library, their heads to be continued.

Knows nothing about splits; its groups are the library's modules, so that no module is on both sides of one.
"""

from moesaic.data.demo.stdlib import Function, modules

PROMPT, RESPONSE = (60, 250), (100, 450)  # the fewest and the most characters of each


def groups(seed: int) -> dict[str, list[dict]]:
    """The rows of every module; prompt, line break and response begin a function, its docstring cut to a line."""
    return {
        name: [row for function in module.functions if (row := continuation(function))]
        for name, module in modules().items()
    }


def continuation(function: Function) -> dict | None:
    """One row: the head of a function and what follows it, or None where either has not the size of a lesson."""
    head, body, ends = function
    extra = 0  # lines of the body that lengthen a short head
    while len(prompt := "\n".join([*head, *body[:extra]]).rstrip()) < PROMPT[0] and extra < len(body):
        extra += 1
    cuts = ("\n".join(body[extra:end]).strip("\n") for end in ends if end > extra)
    response = max((text for text in cuts if len(text) <= RESPONSE[1]), key=len, default="")
    good = PROMPT[0] <= len(prompt) <= PROMPT[1] and len(response) >= RESPONSE[0]
    return {"prompt": prompt, "response": response} if good else None
