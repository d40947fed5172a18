"""Techniques that misbehave: each must be one row, and all others fine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.compressor import Compressor
from compress.context import StepContext
from compress.model import Model


@dataclass(frozen=True, repr=False)
class RaiseError(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        raise ZeroDivisionError("the plug-in divided by zero")


@dataclass(frozen=True, repr=False)
class LeaveByExit(Compressor):
    """Ends the process without a word."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        os._exit(7)


@dataclass(frozen=True, repr=False)
class AskToExit(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        sys.exit(3)


@dataclass(frozen=True, repr=False)
class Segfault(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        print("about to read address 1", file=sys.stderr)
        ctypes.string_at(1)
        return model


@dataclass(frozen=True, repr=False)
class KillItself(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        os.kill(os.getpid(), signal.SIGKILL)
        return model


@dataclass(frozen=True, repr=False)
class KillServer(Compressor):
    """Kills the process that it was forked from."""

    def compress(self, model: Model, context: StepContext) -> Model:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(86400)
        return model


@dataclass(frozen=True, repr=False)
class Hang(Compressor):
    """Sleeps for ever, and has a child that does."""

    mark: str = ""

    def compress(self, model: Model, bench: StepContext) -> Model:
        child = subprocess.Popen(["sleep", "86400"])
        if self.mark:
            Path(self.mark).write_text(str(child.pid))
        while True:
            time.sleep(1)


@dataclass(frozen=True, repr=False)
class HangInC(Compressor):
    """Waits in C code with the interpreter's lock held: no Python handler can run."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        ctypes.PyDLL(None).pause()
        return model


@dataclass(frozen=True, repr=False)
class EatMemory(Compressor):
    """Allocates without end, in pieces that are touched; swallows the error that says so."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        kept: list[object] = []
        while True:
            try:
                kept.append(bytearray(b"x") * (1 << 26))
            except MemoryError:
                time.sleep(0.01)
            kept.append(_mapped(1 << 26))


def _mapped(size: int) -> object:
    """Return touched memory that counts as shared data, which RLIMIT_DATA does not see."""
    import mmap

    area = mmap.mmap(-1, size)
    for place in range(0, size, mmap.PAGESIZE):
        area[place] = 1
    return area


@dataclass(frozen=True, repr=False)
class EatMemoryPlainly(Compressor):
    """Allocates one tensor after another."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        kept = []
        while True:
            kept.append(torch.ones(1 << 24))


@dataclass(frozen=True, repr=False)
class FillDisk(Compressor):
    """Writes until the disk is full, where it is told or among its temporary files."""

    place: str = ""

    def compress(self, model: Model, bench: StepContext) -> Model:
        import tempfile

        with tempfile.NamedTemporaryFile(dir=self.place or None, delete=False) as file:
            while True:
                file.write(b"z" * (1 << 20))
                file.flush()


@dataclass(frozen=True, repr=False)
class ReturnNan(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        with torch.no_grad():
            next(model.module.parameters()).fill_(float("nan"))
        return model


@dataclass(frozen=True, repr=False)
class ChangeInput(Compressor):
    """Changes what it can reach: the teacher, its own copy, and data that are shared."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher", "train"})

    def compress(self, model: Model, bench: StepContext) -> Model:
        assert bench.teacher is not None
        with torch.no_grad():
            for module in (bench.teacher.module, model.module):
                for parameter in module.parameters():
                    parameter.zero_()
        return model


class _Wider(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.inner(inputs)
        return torch.cat([outputs, outputs], 1)


@dataclass(frozen=True, repr=False)
class OtherShape(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        return replace(model, module=_Wider(model.module))


@dataclass(frozen=True, repr=False)
class ReturnNothing(Compressor):
    def compress(self, model: Model, bench: StepContext) -> Model:
        return None  # type: ignore[return-value]


@dataclass(frozen=True, repr=False)
class ForkBomb(Compressor):
    """Leaves children behind that outlive the step, if they are let."""

    mark: str = ""

    def compress(self, model: Model, bench: StepContext) -> Model:
        children = [subprocess.Popen(["sleep", "86400"]) for _ in range(5)]
        if self.mark:
            Path(self.mark).write_text(" ".join(str(child.pid) for child in children))
        return model


@dataclass(frozen=True, repr=False)
class Chatter(Compressor):
    """Prints a lot, and bytes that are no text."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        for _ in range(100):
            os.write(1, b"\xff\xfe|<script>alert(1)</script>|" * 1000)
        raise ValueError("<img src=x onerror=alert(1)> | `pipe` \n second line")


@dataclass(frozen=True, repr=False)
class Escape(Compressor):
    """Starts a child in a session of its own, which leaves the step's process group."""

    mark: str = ""

    def compress(self, model: Model, bench: StepContext) -> Model:
        child = subprocess.Popen(["sleep", "86400"], start_new_session=True)
        if self.mark:
            Path(self.mark).write_text(str(child.pid))
        return model


HOSTILE = (
    *(RaiseError, LeaveByExit, AskToExit, Segfault, KillItself, KillServer, Hang, HangInC),
    *(EatMemory, EatMemoryPlainly, FillDisk, ReturnNan, ChangeInput, OtherShape, ReturnNothing),
    *(ForkBomb, Chatter, Escape),
)
