"""The model that `load_model` returns: saved as a folder or pushed to the hub, as models of transformers are.

Knows nothing about decoders or encoders, which define their files and their class in transformers.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.config import DecoderConfig, EncoderConfig
from moesaic.errors import DataError, StorageError
from moesaic.files import check_space, disk, write_new
from moesaic.hub import hub
from moesaic.hub.card import model_card


class LoadedModel(nn.Module, ABC):
    """A loaded model. `folder`: its files; `origin`: its place and commit, if it is not from a local folder."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[str, str] = {}

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the model's output; DataError for ids that it cannot read."""
        require_ids(input_ids, self.config)
        return super().__call__(input_ids, *args, **kwargs)

    @property
    @abstractmethod
    def config(self) -> DecoderConfig | EncoderConfig: ...

    @property
    @abstractmethod
    def auto_class(self) -> str:
        """The class of transformers that opens the files of `write`."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the model into an empty folder."""

    @property
    def num_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.parameters())

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a new folder that `transformers` opens: config.json and safetensors.

        `overwrite`: replace a folder that exists, unless the model was loaded from it.
        """
        return write_new(self.target(folder), self.write, self.num_bytes, "the model", overwrite)

    def target(self, folder: str | os.PathLike[str]) -> Path:
        """A folder to save to, which is not the model's own."""
        if os.path.realpath(folder) == os.path.realpath(self.folder):
            raise StorageError("the model was loaded from this folder", path=folder, hint="save it to another folder")
        return Path(folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` and a model card to a repository of the hub, in one commit.

        Creates a missing repository or branch (`revision`), `private` or by the owner's default, and replaces other
        weights in it. `token`: by default that of `hf auth login` or HF_TOKEN. `license`: in the hub's spelling, named
        in the card. Returns the commit's address; WeightsError with the hub's answer.
        """
        target, size = hub.repository(repository, revision), sum(weight.numel() for weight in self.parameters())
        facts = {"family": self.config.family, "parameters": size, "auto_class": self.auto_class}
        card = model_card(target, license=license, origin=self.origin, **facts)
        with disk.private() as draft:
            check_space(draft, self.num_bytes, "the copy that is uploaded")
            self.write(draft)
            files: dict[str, Path | bytes] = {path.name: path for path in sorted(draft.iterdir())}
            return hub.push(target, {**files, hub.CARD: card.encode()}, private, token)


def require_ids(ids: Tensor, config: DecoderConfig | EncoderConfig) -> None:
    """Raise DataError unless ids are rows of whole numbers of the vocabulary, within the context."""

    def require(good: bool, what: str, expected: str, got: object) -> None:
        if not good:
            raise DataError(what, field="input_ids", expected=expected, got=str(got))

    whole = not ids.dtype.is_floating_point and not ids.dtype.is_complex and ids.dtype != torch.bool
    require(whole, "ids of another type", "whole numbers", ids.dtype)
    require(ids.ndim == 2, "ids of another shape", "rows of ids: (rows, tokens)", list(ids.shape))
    require(ids.numel() > 0, "no ids", "a row and a token or more", list(ids.shape))
    require(ids.shape[1] <= config.context, "the rows are too long", f"at most {config.context:,} tokens", ids.shape[1])
    low, high = (int(end) for end in ids.aminmax())
    expected = f"0 to {config.vocab_size - 1:,}"
    require(low >= 0 and high < config.vocab_size, "an id outside the vocabulary", expected, low if low < 0 else high)
