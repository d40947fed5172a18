"""One step on several devices: processes that do the same work, and share a training's batches.

Every process (rank) runs the whole step in lockstep: the same code, seeds and data. In training
each takes a part of every batch on its own device, and gradients are added up, so weights stay
equal. What could differ (a clock, a store, a GPU's rounding) is decided by the first rank, which
alone writes anything. `torch.distributed` does the talking: NCCL between GPUs, gloo between CPUs.
"""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
CHUNK = 2**24
"""Values that are exchanged at once."""
WAIT = datetime.timedelta(days=7)
"""For one another. Whoever runs a step limits its time."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that do a step; alone, nothing is exchanged."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process trains, and what it exchanges lies."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, items: Tensor) -> Tensor:
        """Return this process's part of a batch's items."""
        return items[self.rank :: self.count]

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first rank decides, or raise what it raises; the others do not ask."""
        if self.count == 1:
            return decide()
        import torch.distributed as processes

        decided: list[Any] = [None, None]
        if self.first:
            try:
                decided[0] = decide()
            except Exception as error:  # whoever asks may know what to do, so all must learn of it
                decided[1] = error if _travels(error) else RuntimeError(str(error))
        processes.broadcast_object_list(decided, src=0, device=self.device)
        if decided[1] is not None:
            raise decided[1]
        return decided[0]

    def anywhere(self, happened: bool) -> bool:
        """Whether something happened in any of the processes."""
        if self.count == 1:
            return happened
        flag = torch.tensor([float(happened)], device=self.device)
        self.add([flag])
        return bool(flag > 0)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add up float tensors over all processes, in place, in one exchange of float32."""
        self._exchange(tensors, "SUM")

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Average float tensors over all processes, in place."""
        self.add(tensors)
        for tensor in tensors if self.count > 1 else ():
            tensor.div_(self.count)

    def most(self, tensor: Tensor) -> None:
        """Take the largest value over all processes, place by place, in place."""
        for part in tensor.flatten().split(CHUNK) if self.count > 1 else ():
            self._exchange([part], "MAX")

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return every process's float tensor, all of one shape, one after the other."""
        rows = tensor.new_zeros(self.count, *tensor.shape)
        rows[self.rank] = tensor
        self.add([rows])
        return rows

    def _exchange(self, tensors: Sequence[Tensor], how: str) -> None:
        if self.count == 1 or not tensors:
            return
        import torch.distributed as processes

        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        flat = flat.to(self.device)
        processes.all_reduce(flat, getattr(processes.ReduceOp, how))
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.detach().copy_(part.view(tensor.shape))


def _travels(value: object) -> bool:
    """Whether another process can have an object."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # some classes raise anything
        return False
    return True


_ranks = Ranks()


def ranks() -> Ranks:
    """Return this process's place among those that do the step."""
    return _ranks


def join(rank: int, count: int, kind: str, place: Path) -> None:
    """Join the processes that meet at a file (which must not exist before), on their devices.

    `kind` is 'cpu' or 'cuda': then each takes the GPU of its number. All are on this machine, and
    talk over its loopback address alone.
    """
    global _ranks
    import torch.distributed as processes

    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    processes.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=processes.FileStore(str(place), count),
        rank=rank,
        world_size=count,
        timeout=WAIT,
    )
    _ranks = Ranks(rank, count, device)


def leave() -> None:
    """Leave the other processes."""
    global _ranks
    if _ranks.count > 1:
        import torch.distributed as processes

        processes.destroy_process_group()
        _ranks = Ranks()
