"""The section about scores of generated text.

Knows nothing about how scores are computed.
"""

from typing import Annotated, Literal

from pydantic import Field

from moesaic.sections.section import Count, Distinct, Section

TextMetric = Literal["exact_match", "f1", "rouge", "bleu", "trace", "sari", "truth"]


class Texts(Section):
    """Greedy continuations of test prompts by the base, every expert and the mixture, and their scores."""

    metrics: Annotated[list[TextMetric], Distinct] = Field(default=["exact_match", "f1", "rouge", "bleu"], min_length=1)
    """Scores against the rows' responses; truth also reads `correct_answers` and `incorrect_answers`. rouge, bleu and
    truth need `pip install 'moesaic[metrics]'`."""
    limit: Count = 50
    """Maximum number of rows of a domain."""
    max_new_tokens: Count = 64
    """Maximum number of new tokens."""
