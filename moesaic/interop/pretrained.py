"""Reads a model by folder or hub id, to call and to save.

Knows nothing about tokenizers, experts or routers.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moesaic.config import DecoderConfig
from moesaic.errors import MoesaicWarning
from moesaic.files import write_new
from moesaic.hub.locate import locate
from moesaic.interop.decoders import CONFIG, read_decoder, write_decoder
from moesaic.interop.encoders import ARCHITECTURES, load_pretrained
from moesaic.interop.families import FAMILIES
from moesaic.interop.folders import require_model
from moesaic.interop.loaded_model import LoadedModel
from moesaic.model.decoder import Decoder, Output
from moesaic.tensors.json_config import family_in, read_settings
from moesaic.tensors.shards import SHARD_BYTES


class LoadedDecoder(LoadedModel):
    """A decoder with the content of its config.json, called and saved as models of transformers are."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, decoder: Decoder, found: dict[str, Any]):
        super().__init__()
        self.decoder, self.found = decoder, found

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def forward(
        self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | Bool[Tensor, "b t"] | None = None
    ) -> Output:
        """`.logits` (b, t, v) and `.hidden` (b, t, d); `attention_mask`: 0 for padding, left or right."""
        return self.decoder(input_ids, mask=attention_mask)

    def save_pretrained(
        self, folder: str | os.PathLike[str], max_shard_bytes: int = SHARD_BYTES, *, overwrite: bool = False
    ) -> Path:
        """Write a new folder that `transformers` opens: config.json, generation_config.json and safetensors.

        `overwrite`: replace a folder that exists, unless the model was loaded from it.
        """
        target = self.target(folder)
        return write_new(
            target, lambda draft: self.write(draft, max_shard_bytes), self.num_bytes, "the model", overwrite
        )

    def write(self, folder: Path, max_shard_bytes: int = SHARD_BYTES) -> None:
        write_decoder(folder, self.decoder, self.found, max_shard_bytes)


Made = Callable[[Decoder, dict[str, Any]], LoadedModel]
"""Makes the loaded model of a decoder and the content of its config.json."""


def load_decoder(folder: Path, dtype: torch.dtype | None, made: Made) -> LoadedModel:
    """Load a decoder on the CPU in one type; tensors that are stored in it are views of the files, others copies."""
    upcast = False

    def computed(stored: torch.dtype, model: torch.dtype) -> torch.dtype:
        nonlocal upcast
        if dtype is None and model == torch.float16:
            upcast = True
            return torch.float32
        return dtype or model

    decoder, found = read_decoder(folder, computed, mapped=True)
    if upcast:
        warnings.warn(f"{folder}: float16 is read as float32, in which a CPU computes", MoesaicWarning, stacklevel=3)
    return made(decoder, found).eval()


READERS: dict[str, Callable[[Path, torch.dtype | None, Made], LoadedModel]] = {
    **dict.fromkeys(FAMILIES, load_decoder),
    **dict.fromkeys(ARCHITECTURES, lambda folder, dtype, _: load_pretrained(folder, dtype)),
}
"""`model_type` -> reader of such a folder."""


def read_model(
    place: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    made: Made = LoadedDecoder,
) -> LoadedModel:
    """Read a model as `moesaic.load_model` does; `made`: the class of decoders."""
    at = locate(place, revision)
    folder = require_model(at.folder)
    path = folder / CONFIG
    model = READERS[family_in(read_settings(path), path, READERS, "models")](folder, dtype, made)
    model.folder, model.origin = folder, at.origin
    return model
