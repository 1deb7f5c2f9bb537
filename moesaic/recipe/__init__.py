"""The recipe: the YAML file that describes a mixture, read into strict and frozen sections.

Knows nothing about torch, rows of text or run directories.
"""

from moesaic.recipe.mixing import Mixture, Site
from moesaic.recipe.reading import dump, parse, read
from moesaic.recipe.schema import (
    Base,
    Evaluate,
    ExistingBase,
    NewBase,
    Recipe,
)
from moesaic.sections.expert import Expert, Target
from moesaic.sections.layers import layer_range
from moesaic.sections.names import RESERVED, Control, validate_expert, validate_name
from moesaic.sections.routers import EncoderFeature, Exploration, Router, RouterLoss, RouterSpec
from moesaic.sections.sources import Data, DemoData, FileData, LabelledData, Source
from moesaic.sections.texts import Texts
from moesaic.sections.training import Pretrain, Train, TrainOverride

__all__ = [
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
