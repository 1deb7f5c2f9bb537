"""moesaic composes mixture-of-experts language models out of models and adapters that already exist."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moesaic.errors import MoesaicError
    from moesaic.generate.loaded import LoadedMixture, load
    from moesaic.generate.sample import Sampling
    from moesaic.recipe import Recipe
    from moesaic.recipe import read as read_recipe
    from moesaic.stages.run import compose, evaluate, pretrain, run, train_expert, train_router, verify_expert

# Public name -> where it lives. Imported at first use, so that `moesaic --help` does not wait for torch.
_HOMES = {
    "MoesaicError": "moesaic.errors",
    "LoadedMixture": "moesaic.generate.loaded",
    "load": "moesaic.generate.loaded",
    "Sampling": "moesaic.generate.sample",
    "Recipe": "moesaic.recipe",
    "read_recipe": "moesaic.recipe:read",
    **dict.fromkeys(
        ("run", "pretrain", "train_expert", "verify_expert", "train_router", "compose", "evaluate"),
        "moesaic.stages.run",
    ),
}
__all__ = [
    "LoadedMixture",
    "MoesaicError",
    "Recipe",
    "Sampling",
    "compose",
    "evaluate",
    "load",
    "pretrain",
    "read_recipe",
    "run",
    "train_expert",
    "train_router",
    "verify_expert",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'moesaic' has no attribute '{name}'")
    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(module), own or name)
