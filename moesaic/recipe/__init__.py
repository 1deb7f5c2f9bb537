"""The recipe: the YAML file that says everything about a mixture, read into strict and frozen sections.

Knows nothing about torch, rows of text or run directories: it is plain data that every other room is handed.
"""

from moesaic.recipe.mixing import LEGAL, Mixture, Site
from moesaic.recipe.reading import dump, parse, read
from moesaic.recipe.routers import EncoderFeature, Exploration, Router, RouterLoss, RouterSpec
from moesaic.recipe.schema import (
    RESERVED,
    Base,
    Control,
    Evaluate,
    ExistingBase,
    Expert,
    NewBase,
    Recipe,
    Target,
    TextMetric,
    Texts,
    validate_expert,
)
from moesaic.recipe.section import layer_range, validate_name
from moesaic.recipe.sources import Data, DemoData, FileData, LabelledData, Source
from moesaic.recipe.training import Pretrain, Train, TrainOverride

__all__ = [
    "LEGAL",
    "RESERVED",
    "Base",
    "Control",
    "Data",
    "DemoData",
    "EncoderFeature",
    "Evaluate",
    "ExistingBase",
    "Expert",
    "Exploration",
    "FileData",
    "LabelledData",
    "Mixture",
    "NewBase",
    "Pretrain",
    "Recipe",
    "Router",
    "RouterLoss",
    "RouterSpec",
    "Site",
    "Source",
    "Target",
    "TextMetric",
    "Texts",
    "Train",
    "TrainOverride",
    "dump",
    "layer_range",
    "parse",
    "read",
    "validate_expert",
    "validate_name",
]
