"""The domain of program text: functions of the Python standard library, with their heads as prompts.

Knows nothing about splits; its groups are modules of the library, so that no module is in two splits.
"""

from moesaic.data.demo.stdlib import Function, modules

PROMPT, RESPONSE = (60, 250), (100, 450)  # minimum and maximum number of characters


def groups(seed: int) -> dict[str, list[dict]]:
    """Rows by module; prompt, line break and response are the start of a function with a one-line docstring."""
    return {
        name: [row for function in module.functions if (row := continuation(function))]
        for name, module in modules().items()
    }


def continuation(function: Function) -> dict | None:
    """A row with the head of a function and the lines after it, or None if either has an unsuitable length."""
    head, body, ends = function
    extra = 0  # lines of the body that lengthen a short head
    while len(prompt := "\n".join([*head, *body[:extra]]).rstrip()) < PROMPT[0] and extra < len(body):
        extra += 1
    cuts = ("\n".join(body[extra:end]).strip("\n") for end in ends if end > extra)
    response = max((text for text in cuts if len(text) <= RESPONSE[1]), key=len, default="")
    good = PROMPT[0] <= len(prompt) <= PROMPT[1] and len(response) >= RESPONSE[0]
    return {"prompt": prompt, "response": response} if good else None
