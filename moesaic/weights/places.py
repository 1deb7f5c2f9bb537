"""Where a model lies: a folder, a folder with the model in a subfolder, or an id of the Hugging Face hub.

Knows nothing about what is in the files.
"""

import os
import re
from pathlib import Path

from moesaic.errors import WeightsError

CONFIG = "config.json"
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model"]
"""What is asked of the hub: nothing that could run code."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(place: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a model on this disk; a hub id that is no folder here is downloaded, or found in the cache.

    `revision`: a branch, a tag or a commit of the hub.
    """
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            raise WeightsError("a folder has no revisions", path=folder, field="revision", got=revision)
        return model_folder(folder)
    if isinstance(place, str) and _HUB_ID.fullmatch(place):
        return model_folder(download(place, revision))
    raise WeightsError(
        "no such model folder",
        path=folder,
        hint="give a folder with config.json, or a hub id such as google/gemma-3-270m",
    )


def download(name: str, revision: str | None) -> Path:
    """The snapshot of a hub repository in the local cache, complete for our purposes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise WeightsError(
            "no such folder, and the hub does not give it",
            path=name,
            field="revision" if revision else None,
            expected=revision,
            got=first,
            hint="check the name, the network and HF_HUB_OFFLINE; for a gated model, log in with `hf auth login`",
        ) from error


def model_folder(folder: Path) -> Path:
    """Where config.json is: here, or in the subfolder `{name}-model` or `{name}-models` that holds the model."""
    if (folder / CONFIG).is_file():
        return folder
    name = Path(os.path.abspath(folder)).name
    for candidate in (folder / f"{name}-model", folder / f"{name}-models"):
        if (candidate / CONFIG).is_file():
            return candidate
    return folder


def tokenizer_folder(model: Path) -> Path:
    """Where a model's tokenizer is: beside a folder called `{name}-model` the one called `{name}-tokenizer`."""
    stem = re.sub(r"-models?$", "", Path(os.path.abspath(model)).name)
    beside = Path(os.path.abspath(model)).parent / f"{stem}-tokenizer"
    return beside if not (model / "tokenizer.json").is_file() and beside.is_dir() else model
