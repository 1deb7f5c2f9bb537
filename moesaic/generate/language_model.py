"""`moesaic.load_model`: a model by folder or hub id, to call, to save, and to continue prompts with.

Knows nothing about mixtures.
"""

import os
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Unpack, overload

import torch

from moesaic.artefacts.base import end_of
from moesaic.compose.alone import base_alone
from moesaic.files import disk
from moesaic.generate.engine import Engine
from moesaic.generate.loaded import Asked, Several, Words, WritingModel
from moesaic.generate.request import Generation
from moesaic.hardware import CPU, chosen
from moesaic.hub.locate import CONFIG, tokenizer_folder
from moesaic.interop.loaded_model import LoadedModel
from moesaic.interop.pretrained import LoadedDecoder, read_model
from moesaic.tensors.shards import SHARD_BYTES
from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.published import FILES


class LanguageModel(LoadedDecoder):
    """A decoder that is called and saved as models of transformers are, and that continues prompts.

    >>> model = moesaic.load_model("shipped:tiny")
    >>> model.generate("Once upon a time", max_new_tokens=24).text
    """

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the model's folder, read when it is first asked for."""
        return Tokenizer.load(tokenizer_folder(self.folder), end_of(self.found, self.folder / CONFIG))

    @cached_property
    def writer(self) -> WritingModel:
        """The same model as `moesaic.load` returns it."""
        device = self.decoder.norm.weight.device
        return WritingModel(self.folder, Engine(base_alone(self.decoder), self.tokenizer, device))

    @overload
    def generate(self, prompt: Asked, **settings: Unpack[Words]) -> Generation: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Several, **settings: Unpack[Words]) -> list[Generation]: ...
    def generate(self, prompt: Asked | Several, **settings: Unpack[Words]) -> Generation | list[Generation]:
        """The continuation of a prompt, or of each of several; the keywords are those of `WritingModel.generate`."""
        return self.writer.generate(prompt, **settings)

    def stream(self, prompt: Asked, **settings: Unpack[Words]) -> Generator[str, None, Generation]:
        """Yield the text of `generate` for one prompt, with the same settings, piece by piece; return the whole."""
        return self.writer.stream(prompt, **settings)

    def write(self, folder: Path, max_shard_bytes: int = SHARD_BYTES) -> None:
        """Write the model, and copy the files of its tokenizer that the folder has."""
        super().write(folder, max_shard_bytes)
        beside = tokenizer_folder(self.folder)
        for name in FILES:
            if (beside / name).is_file() and not (folder / name).exists():
                disk.copy(beside / name, folder / name)


def load_model(
    place: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device: str = CPU,
) -> LoadedModel:
    """Load a model, ready to be called, from a folder, `org/name@revision` of the hub, or `shipped:tiny`.

    `dtype`: that of all tensors, as a word or a type of torch; `auto`: bfloat16 where the device has units for it, else
    float32 (default: the one of config.json, else the widest stored; but float32 instead of float16, as a CPU computes
    in it). `device`: as of `moesaic.load`, but the CPU by default. `revision`: that of the hub, unless the id names
    one. A decoder is a `LanguageModel`, which also continues prompts.
    """
    compute = chosen(device, dtype if isinstance(dtype, str) else "float32")
    own = compute.dtype if isinstance(dtype, str) else dtype
    return read_model(place, own, revision, LanguageModel).to(compute.device)
