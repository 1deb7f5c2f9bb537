"""moesaic composes mixture-of-experts language models out of models and adapters that already exist."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moesaic.adapters.published import published_ttlora
    from moesaic.adoption.adding import add_expert
    from moesaic.adoption.adopting import adopt, amend
    from moesaic.artefacts.inspect import inspect
    from moesaic.compose.export import export
    from moesaic.compose.merge import merge
    from moesaic.compose.plan import plan
    from moesaic.compose.upcycling import upcycle
    from moesaic.errors import MoesaicError
    from moesaic.generate.language_model import LanguageModel, load_model
    from moesaic.generate.loaded import ClassifyingMixture, WritingMixture, WritingModel, load
    from moesaic.generate.sample import Sampling
    from moesaic.recipe import Recipe
    from moesaic.recipe import read as read_recipe
    from moesaic.stages import run

# Public name -> its module, imported at first use, so that `moesaic --help` does not wait for torch. The other verbs
# are in `moesaic.stages`: here `compose` and `evaluate` are names of rooms.
_HOMES = {
    "ClassifyingMixture": "moesaic.generate.loaded",
    "LanguageModel": "moesaic.generate.language_model",
    "MoesaicError": "moesaic.errors",
    "Recipe": "moesaic.recipe",
    "Sampling": "moesaic.generate.sample",
    "add_expert": "moesaic.adoption.adding",
    "adopt": "moesaic.adoption.adopting",
    "amend": "moesaic.adoption.adopting",
    "export": "moesaic.compose.export",
    "inspect": "moesaic.artefacts.inspect",
    "WritingMixture": "moesaic.generate.loaded",
    "WritingModel": "moesaic.generate.loaded",
    "load": "moesaic.generate.loaded",
    "load_model": "moesaic.generate.language_model",
    "merge": "moesaic.compose.merge",
    "plan": "moesaic.compose.plan",
    "published_ttlora": "moesaic.adapters.published",
    "read_recipe": "moesaic.recipe:read",
    "run": "moesaic.stages",
    "upcycle": "moesaic.compose.upcycling",
}
__all__ = [
    "ClassifyingMixture",
    "LanguageModel",
    "MoesaicError",
    "Recipe",
    "Sampling",
    "WritingMixture",
    "WritingModel",
    "add_expert",
    "adopt",
    "amend",
    "export",
    "inspect",
    "load",
    "load_model",
    "merge",
    "plan",
    "published_ttlora",
    "read_recipe",
    "run",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'moesaic' has no attribute '{name}'")
    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(module), own or name)
