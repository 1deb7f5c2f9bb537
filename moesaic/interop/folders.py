"""Says what a folder is: a model, an adapter, both at once, an expert, a mixture, a run, or nothing that is known.

Reads only the names of files, a manifest and the family in a config.json. Knows nothing about weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moesaic.errors import WeightsError
from moesaic.files import MANIFEST, read_json
from moesaic.hub.locate import CONFIG, model_folder
from moesaic.interop import peft_config
from moesaic.interop.encoder_names import NAMES as ENCODERS
from moesaic.tensors.file_names import INDEX, TENSORS

What = Literal[
    "model",
    "merge",
    "encoder",
    "adapter",
    "model and adapter",
    "expert",
    "mixture",
    "run",
    "router",
    "checkpoint",
    "nothing",
]

MODELS: tuple[What, ...] = ("model", "merge", "encoder")
"""Folders that hold a model: one of transformers or a base of this package, a merge, or an encoder."""

FORMS = {"tensor_train.json": "tt_lora", "ffn_config.json": "ffn", peft_config.CONFIG: "lora"}
"""File of an expert that has no manifest -> the kind of the expert."""

OWN: dict[str, What] = {
    "base": "model",
    "expert": "expert",
    "mixture": "mixture",
    "router": "router",
    "encoder": "encoder",
    "checkpoint": "checkpoint",
}
"""Kind in a manifest -> what its folder is."""

WORDS: dict[What, tuple[str, str]] = {
    "adapter": ("an adapter, not a model", "give its base here, and join the adapter to it by `moesaic adopt`"),
    "expert": ("an expert, not a model", "give its base here, and join the expert to it by `moesaic adopt`"),
    "mixture": ("a mixture, not a model", "name its folder base, or open the mixture with `moesaic.load`"),
    "run": ("a run, not a model", "name its folder base, or open its mixture with `moesaic.load`"),
    "router": ("a router, not a model", "name the folder of its base"),
    "checkpoint": ("the state of a training, not a model", "continue it with `moesaic run`"),
}
"""Folder that holds no model -> the problem and the remedy, where a model is wanted."""


@dataclass(frozen=True)
class Folder:
    """A folder as `what_is` finds it.

    `at`: the folder of its files, which may lie inside the given one. `form`: the kind of an expert or adapter: lora,
    tt_lora, ffn or model. `manifest`: as written, not verified; {} for folders of other programs and for runs.
    """

    what: What
    at: Path
    form: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        """Whether a whole model can be read from it: a model, a merge, an encoder, or an expert that is a model."""
        return self.what in MODELS or (self.what == "expert" and self.form == "model")


def what_is(folder: Path) -> Folder:
    """Describe a folder by its files: by its manifest if it has one, else by the names of the files."""
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        if what := OWN.get(str(manifest.get("kind"))):
            merged = what == "model" and "merged" in manifest
            return Folder("merge" if merged else what, folder, str(manifest.get("adapter", "")), manifest)
    if any((folder / name).exists() for name in ("mixture", "evaluation.json", "recipe.yaml")):
        return Folder("run", folder)
    if (folder / "best" / MANIFEST).is_file():
        return what_is(folder / "best")
    form = next((form for file, form in FORMS.items() if (folder / file).is_file()), "")
    at = model_folder(folder)
    if form == "lora":
        whole = (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (TENSORS, INDEX))
        return Folder("model and adapter" if whole else "adapter", folder, form)
    if form:
        return Folder("expert", folder, form)
    if not (at / CONFIG).is_file():
        return Folder("nothing", folder)
    return Folder("encoder" if family_of(at) in ENCODERS else "model", at)


def family_of(folder: Path) -> str:
    return str(read_json(folder / CONFIG).get("model_type"))


def require_model(folder: Path) -> Path:
    """The folder of a model's config.json, in `folder` or in it; WeightsError for anything but a model.

    A folder that holds nothing known is returned as it is, so that its reader names the file that is missing.
    """
    found = what_is(folder)
    if found.what == "model and adapter":
        named = repr(read_json(folder / peft_config.CONFIG).get("base_model_name_or_path"))
        raise WeightsError(
            f"a model and an adapter in one folder ({CONFIG} and {peft_config.CONFIG})",
            path=folder,
            got=f"an adapter of the base {named}, which transformers would compute in place of the model alone",
            hint=f"move {peft_config.CONFIG} and adapter_model.* to a folder of their own: for the model with its "
            "adapter, adopt that folder over the base, or merge it with peft's merge_and_unload",
        )
    if found.what in WORDS and not found.is_model:
        what, hint = WORDS[found.what]
        raise WeightsError(what, path=folder, hint=hint)
    return found.at
