"""A second runtime, for tests alone: one file brings its columns, its verdicts, its table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from compress.runtimes.base import DEFAULT_LEVEL, OnnxFile, Runtime
from compress.runtimes.onnxruntime_cpu import OnnxruntimeCpu, OrtSession


class Slowed:
    """A session that takes as many milliseconds more as its file has thousands of bytes."""

    def __init__(self, session: OrtSession, onnx: OnnxFile) -> None:
        self.session = session
        with open(onnx, "rb") as file:
            self.pause = len(file.read()) / 1e6

    @property
    def names(self) -> Sequence[str]:
        return self.session.names

    def run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        until = time.perf_counter() + self.pause
        outputs = self.session.run(feed)
        while time.perf_counter() < until:
            pass
        return outputs


class Fake(Runtime):
    """Runs files by their length: the smaller one is the faster."""

    name, title = "fake", "a made-up runtime"

    def __init__(self) -> None:
        self.inner = OnnxruntimeCpu()

    def absent(self) -> str:
        return ""

    def versions(self) -> Mapping[str, str]:
        return {"fake": "3.1"}

    def share_threads(self, threads: int) -> None:
        self.inner.share_threads(threads)

    def open(self, onnx: OnnxFile, threads: int = 0, level: str = DEFAULT_LEVEL) -> Slowed:
        return Slowed(self.inner.open(onnx, threads, level), onnx)


class Unbuilt(Fake):
    def __init__(self) -> None:
        raise RuntimeError("no license")


class Numbered(Fake):
    name = "fake2"


class Missing(Fake):
    def absent(self) -> str:
        return "libfake.so is missing"


class Torn(Fake):
    def absent(self) -> str:
        raise RuntimeError("torn")


class Unversioned(Fake):
    def versions(self) -> Mapping[str, str]:
        raise KeyError("version")
