"""A full fine-tune as a feed-forward expert: its blocks, and what else of it differs from the base.

Tensors are compared one by one as they are read. Knows nothing about terminals or routers.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from moesaic.adapters.feedforward import FFN, block_of, ffns, require_glu
from moesaic.artefacts.base import Base, end_of
from moesaic.errors import CompatibilityError
from moesaic.hub.locate import model_folder, tokenizer_folder
from moesaic.interop.decoders import by_default, named, read_decoder
from moesaic.kinds.difference import farthest, require_variant
from moesaic.tokenizer import Tokenizer


@dataclass(frozen=True)
class Extraction:
    """The blocks that differ from the base's, and the other tensors that do, each with its change of its norm."""

    ffn: FFN
    outside: dict[str, float]

    def require_nothing_else(self, path: Path) -> None:
        """Refuse a model that differs from the base with these blocks, and name the tensors that differ."""
        if self.outside:
            many, far = len(self.outside), farthest(self.outside)
            what = f"outside its feed-forward blocks the model differs from the base in {many} tensors: {far}"
            hint = "keep the model whole (kind model), merge what is shared into a new base, or ignore the rest"
            raise CompatibilityError(what, path=path, hint=hint)


@torch.no_grad()
def extract(base: Base, folder: Path) -> Extraction:
    """Read a fine-tuned version of the base by mapping; the expert's tensors are copied.

    Raises CompatibilityError for a model of another shape or tokenizer, and where no block differs.
    """
    at = model_folder(folder)
    tuned, found = read_decoder(at, by_default, mapped=True)
    tokenizer = Tokenizer.load(tokenizer_folder(at), end_of(found, at / "config.json"))
    require_variant(base, tuned.config, tokenizer, folder)
    ours, blocks = ffns(base.decoder), {}
    for path, slot in ffns(tuned).items():
        own, theirs = require_glu(slot, path), require_glu(ours[path], path)
        if any(not one.equal(other) for one, other in zip(own.parameters(), theirs.parameters(), strict=True)):
            blocks[path] = block_of(own)
    before, outside = named(base.decoder), {}
    for name, tensor in named(tuned).items():
        if ".mlp." not in name and not tensor.equal(before[name]):
            moved = (tensor.double() - before[name].double()).norm() / before[name].double().norm().clamp_min(1e-12)
            outside[name] = moved.item()
    if not blocks:
        got = f"changes in {farthest(outside)}" if outside else "the same weights"
        raise CompatibilityError("no feed-forward block differs from the base", path=folder, got=got)
    return Extraction(FFN(blocks), outside)
