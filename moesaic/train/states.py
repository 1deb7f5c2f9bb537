"""Tensors of a training on disk: in one file, or, where processes hold pieces of them, a file of each process.

Knows nothing about what the tensors mean. All files are safetensors, also those of torch.distributed.checkpoint.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import StorageError
from moesaic.tensors.tensors import read_tensors, write_tensors

TENSORS = "state.safetensors"


def write_whole(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors that this process holds whole."""
    write_tensors(folder / TENSORS, tensors)


def write_pieces(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write each process's pieces of DTensors into a folder that all processes see; all processes call this."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        why = "; ".join(f"process {rank}: {cause}" for rank, cause in error.failures.items())
        raise StorageError("the state of this training cannot be written", path=folder, got=why) from error


def read_state(
    folder: Path, place: Callable[[str, Tensor], Tensor], empty: Callable[[str, torch.Size], Tensor]
) -> dict[str, Tensor]:
    """Read the tensors of a folder that either function wrote, in as many processes as there are now.

    `place` takes from a whole tensor what this process holds of it; `empty` gives the tensor to fill from pieces.
    """
    if (folder / TENSORS).is_file():
        return {name: place(name, tensor) for name, tensor in read_tensors(folder / TENSORS).items()}
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    described = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: empty(name, found.size) for name, found in described.items()}  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process alone reads all pieces itself
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return tensors
