"""Reads the YAML file of mergekit-moe, which makes a sparse model of dense ones.

Refuses what mergekit accepts and this package does not make, by its key. Knows nothing about models.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from moesaic.errors import RecipeError
from moesaic.sections.document import load
from moesaic.sections.section import Amount, Count, Section, Text

ARCHITECTURES = {"mixtral": "mixtral", "qwen3 moe": "qwen3_moe"}
"""Name of an architecture in mergekit, lower case -> family."""
LIMIT = 1 << 22


class Expert(Section):
    """A model whose feed-forward blocks become those of an expert."""

    source_model: Text
    """Folder or id of the hub; relative to the working directory, as in mergekit."""
    positive_prompts: list[Text] | None = None
    """Texts that the expert is for."""
    negative_prompts: list[Text] | None = None
    """Texts that the expert is not for."""
    noise_scale: Amount | None = None
    """Deviation of normal noise on the three matrices."""
    residual_scale: float | None = None
    """Factor of the matrix that leads out of the block."""


class Moe(Section):
    """A file of mergekit-moe."""

    base_model: Text
    """Model of all tensors outside the feed-forward blocks."""
    experts: list[Expert]
    """Experts, in the order of the router's rows."""
    gate_mode: Literal["hidden", "hidden_last", "cheap_embed", "random", "uniform_random"] = "hidden"
    """Source of the router's rows."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the tensors (default: that of the base)."""
    experts_per_token: Count = 2
    """Experts that a token passes."""
    architecture: Text | None = None
    """Beginning of the name of the architecture to write (default: by the models)."""

    @property
    def family(self) -> str | None:
        """The family to write; None: by the models."""
        if self.architecture is None:
            return None
        asked = self.architecture.lower()
        found = next((family for name, family in ARCHITECTURES.items() if name.startswith(asked)), None)
        if found is None:
            expected = "the beginning of Mixtral or Qwen3 MoE"
            raise RecipeError("unknown architecture", field="architecture", expected=expected, got=self.architecture)
        return found


INSTEAD = {
    "shared_experts": "no family that is written has shared experts: leave the key out",
    "hidden_avg": "it counts padding as tokens: use hidden, or the gate 'means' of `moesaic upcycle`",
}
"""Key or value of mergekit that is refused -> what to do."""


def read_moe(path: str | os.PathLike[str]) -> Moe:
    """Read a file; RecipeError, with the line, for unknown keys and for values that make no model."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError("no such file", path=path)
    if path.stat().st_size > LIMIT:
        raise RecipeError("the file is too large", path=path, expected=f"at most {LIMIT:,} bytes")
    document = load(path.read_text(), str(path))
    try:
        found = Moe.model_validate(document.value)
        check(found)
    except ValidationError as error:
        first = error.errors()[0]
        loc = tuple(first["loc"])
        got = first.get("input") if isinstance(first.get("input"), str | int | float) else None
        hint = next((why for word, why in INSTEAD.items() if word in (got, loc[-1] if loc else None)), None)
        raise document.located(RecipeError(first["msg"].lower(), got=got, hint=hint), document.find(loc)) from None
    except RecipeError as error:
        raise error.at(path=path) from None
    return found


def check(moe: Moe) -> None:
    """Raise RecipeError for a file from which no model that routes can be made, as mergekit does."""
    if len(moe.experts) < moe.experts_per_token:
        got = len(moe.experts)
        raise RecipeError("fewer experts than a token passes", field="experts", expected=moe.experts_per_token, got=got)
    for index, expert in enumerate(moe.experts):
        at = f"experts[{index}]"
        if "+" in expert.source_model:
            hint = "merge the adapter first: moesaic export ADAPTER OUT --format dense"
            raise RecipeError("a model with an adapter", field=f"{at}.source_model", got=expert.source_model, hint=hint)
        if moe.gate_mode != "random" and not expert.positive_prompts:
            raise RecipeError("no prompts", field=f"{at}.positive_prompts", expected="one text or more")
    prompts = [(expert.positive_prompts, expert.negative_prompts or []) for expert in moe.experts]
    if moe.gate_mode != "random" and len(prompts) > 1 and all(one == prompts[0] for one in prompts):
        raise RecipeError("the prompts of all experts are the same", field="experts", hint="say what each is for")
