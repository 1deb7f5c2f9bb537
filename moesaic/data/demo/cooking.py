"""The domain of instructions for cooking, which no expert of the demo learns: text outside its domains.

Knows nothing about splits; its groups are the templates of questions and beginnings.
"""

from random import Random

from moesaic.data.demo.shapes import Groups
from moesaic.data.demo.templates import drawn

DRAWN = 1000  # exchanges before splits are made


def groups(seed: int) -> Groups:
    return drawn("cooking.yaml", DRAWN, Random(f"{seed} cooking"))
