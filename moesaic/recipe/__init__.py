"""The recipe: the YAML file that describes a mixture, read into strict and frozen sections.

Knows nothing about torch, rows of text or run directories.
"""

from moesaic.recipe.reading import dump, parse, read, read_document
from moesaic.recipe.schema import ExistingBase, NewBase, Recipe
from moesaic.sections.names import RESERVED, Control
from moesaic.sections.sources import LabelledData

__all__ = [
    "RESERVED",
    "Control",
    "ExistingBase",
    "LabelledData",
    "NewBase",
    "Recipe",
    "dump",
    "parse",
    "read",
    "read_document",
]
