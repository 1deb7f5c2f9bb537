"""Bases of classifiers on disk: a folder of an encoder or a decoder with its tokenizer.

Knows nothing about experts or labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moesaic.artefacts.base import load_base
from moesaic.artefacts.sentence_encoder import read_tokenizer
from moesaic.files import digest
from moesaic.hardware import HOST, Compute
from moesaic.hub.locate import CONFIG, tokenizer_folder
from moesaic.interop.encoders import ARCHITECTURES, identify, load_encoder
from moesaic.interop.folders import require_model
from moesaic.interop.quantised import pack_layers
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.tensors.json_config import read_settings
from moesaic.tokenizer.pairs import DecoderWriter, EncoderWriter, Writer


@dataclass(frozen=True)
class Backbone:
    """A base without a head; fingerprint and origin as in `base.Base`."""

    body: Encoder | Decoder
    writer: Writer
    fingerprint: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        return {"base_origin": dict(self.origin)} if self.origin else {}

    @property
    def pad(self) -> int:
        return self.body.config.pad


def load_backbone(folder: Path, origin: Mapping[str, str] | None = None, compute: Compute = HOST) -> Backbone:
    """Read the body of a BERT, a RoBERTa or a decoder, without any head but BERT's pooler.

    `origin`, `compute`: see `base.load_base`.
    """
    model = require_model(folder)
    settings = read_settings(model / CONFIG) if (model / CONFIG).is_file() else {}
    if settings.get("model_type") not in ARCHITECTURES:
        base = load_base(folder, origin, compute)
        return Backbone(base.decoder, DecoderWriter(base.tokenizer), base.fingerprint, base.origin)
    encoder = load_encoder(model, torch.get_default_dtype(), body_only=True)
    inner = read_tokenizer(tokenizer_folder(model), encoder)
    writer = EncoderWriter(inner, typed=encoder.config.token_types > 1)
    fingerprint = digest([identify(encoder), inner.to_str()])
    body = compute.put(encoder)
    if compute.bits:
        pack_layers(body, compute.bits)
    return Backbone(body, writer, fingerprint, origin or {})
