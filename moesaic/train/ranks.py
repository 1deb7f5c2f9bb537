"""The processes of one training: which micro-batches each computes, how they share a model, what they add up.

`torchrun` starts them. Knows nothing about batches, losses, optimisers or runs.
"""

import os
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from moesaic.errors import RanksError
from moesaic.model.decoder import Decoder
from moesaic.sections.training import Parallel
from moesaic.train.states import write_pieces, write_whole

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""The longest wait for another process, which may have to read and encode its texts first."""


class Ranks(ABC):
    """A group of processes that train one model, as one of them, the process number `rank` of `world`, sees it.

    It holds whole tensors, unless a subclass says otherwise.
    """

    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this process reports and publishes."""
        return self.rank == 0

    def own(self, first: int, count: int) -> range:
        """The micro-batches that this process computes of `count` ones, a multiple of `world`."""
        assert count % self.world == 0
        return range(first + self.rank, first + count, self.world)

    @abstractmethod
    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a backward pass; after the last one of a step, gradients are averaged over all processes."""

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scale gradients so that their norm over all processes is at most `most`; the norm before."""
        return nn.utils.clip_grad_norm_(parameters, most).item()

    @abstractmethod
    def summed(self, *values: float) -> list[float]:
        """Each value, summed over all processes."""

    @abstractmethod
    def agreed(self, find: Callable[[], T]) -> T:
        """What the main process finds, in all processes."""

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as one process would hold them, in the main process; others may get none."""
        return dict(tensors)

    def full(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor that processes may hold in parts, in every process."""
        return tensor

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that this process holds."""
        return tensor

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """The part of a whole tensor that this process holds, laid out as `like`."""
        return tensor

    @abstractmethod
    def write(self, folder: Path | None, tensors: dict[str, Tensor]) -> None:
        """Write tensors into the folder that the main process names."""


class Alone(Ranks):
    """This process, and no other."""

    rank, world = 0, 1

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def summed(self, *values: float) -> list[float]:
        return [*values]

    def agreed(self, find: Callable[[], T]) -> T:
        return find()

    def write(self, folder: Path | None, tensors: dict[str, Tensor]) -> None:
        assert folder
        write_whole(folder, tensors)


class Together(Ranks, ABC):
    """Several processes in torch's default group."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def summed(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def agreed(self, find: Callable[[], T]) -> T:
        return agreed(find)


class Copies(Together):
    """Every process holds the whole model, and gradients are averaged: DistributedDataParallel."""

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.model.no_sync()  # type: ignore[operator]  # of DistributedDataParallel

    def write(self, folder: Path | None, tensors: dict[str, Tensor]) -> None:
        if folder:
            write_whole(folder, tensors)


class Pieces(Together):
    """Every process holds a piece of each parameter, gradient and moment: `fully_shard`, FSDP2. arXiv 2304.11277."""

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()  # gradients that wait for the last pass would be whole in every process

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        return nn.utils.clip_grad_norm_(parameters, most).full_tensor().item()  # type: ignore[attr-defined]  # DTensor

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor()  # type: ignore[attr-defined]  # DTensor; all processes take part
            if self.main:
                found[name] = full
        return found

    def full(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def local(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if tensor.ndim == 0 or not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

    def write(self, folder: Path | None, tensors: dict[str, Tensor]) -> None:
        at = self.agreed(lambda: folder)
        assert at
        write_pieces(at, tensors)


ALONE = Alone()


def spread(decoder: Decoder, parallel: Parallel = "ddp") -> tuple[nn.Module, Ranks]:
    """The model that a loss calls, and the processes that train it: those of `joined`, or this one alone.

    `ddp`: each process holds a copy; `fsdp`: a piece of every parameter, which become DTensors; `ep`: the same, but
    whole experts of sparse layers, to which tokens travel.
    """
    if not distributed.is_initialized():
        return decoder, ALONE
    if parallel == "ddp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name of the argument is missing in torch 2.11
            settings: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            model = nn.parallel.DistributedDataParallel(decoder, **settings)
        return model, Copies(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from moesaic.train.exchange import scatter_experts

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    apart = scatter_experts(decoder, mesh) if parallel == "ep" else set()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, ignored_params=apart)
    fully_shard(decoder, mesh=mesh, ignored_params=apart)
    return decoder, Pieces(decoder)


def agreed(find: Callable[[], T]) -> T:
    """What the first process of the group finds, in all of them; without a group, what this one finds."""
    if not distributed.is_initialized():
        return find()
    found: list[Any] = [find() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found)
    return found[0]


def world_size() -> int:
    """The number of processes of the group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def threads_each(threads: int) -> int:
    """The threads of each process where all processes of this machine have so many together."""
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined() -> Iterator[int]:
    """Join the processes that `torchrun` started, and give this one's number; without torchrun nothing is joined.

    RanksError where another process is lost. A process ends with the one that started it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield distributed.get_rank()
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in _LOST):
            raise
        hint = "look at the errors of the others; the same command continues from the last saved state"
        raise RanksError("another process of this training was lost", hint=hint) from error
    finally:
        distributed.destroy_process_group()


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Connect timeout")
"""What gloo says of a process that has ended or does not answer."""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(RanksError.exit_code)
