"""The section that asks for scores of generated text.

Knows nothing about how any of them is computed.
"""

from typing import Annotated, Literal

from pydantic import Field

from moesaic.sections.section import Count, Distinct, Section

TextMetric = Literal["exact_match", "f1", "rouge", "bleu", "truth"]


class Texts(Section):
    """What the base, every expert and the mixture write after test prompts, greedily, and what it is held against."""

    metrics: Annotated[list[TextMetric], Distinct] = Field(default=["exact_match", "f1", "rouge", "bleu"], min_length=1)
    """How it is scored against the rows' responses; truth reads `correct_answers` and `incorrect_answers` too. All but
    exact_match and f1 need `pip install 'moesaic[metrics]'`."""
    limit: Count = 50
    """Rows of a domain at most."""
    max_new_tokens: Count = 64
    """Tokens to write at most."""
