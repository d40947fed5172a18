"""The one interface of whatever runs an ONNX file. Needs numpy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import ClassVar, Protocol

import numpy as np

DEFAULT_LEVEL = "default"
"""The optimization level at which files are deployed and measured."""

OnnxFile = bytes | str | PathLike[str]
"""The content of a file, or its path."""


class Session(Protocol):
    """A file that was opened."""

    @property
    def names(self) -> Sequence[str]:
        """The names of its inputs."""

    def run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return its first output for inputs by name."""


class Runtime(ABC):
    """What opens and runs ONNX files. A plug-in is an entry point of this room's `GROUP`."""

    name: str
    """Of letters alone; columns of what is timed in it begin with it."""
    title: str
    """What a reader calls it."""
    levels: ClassVar[Sequence[str]] = ()
    """Further optimization levels; speed-ups divide by the baseline at its fastest."""

    @abstractmethod
    def absent(self) -> str:
        """Return why files cannot be run in it here; '' if they can."""

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Return the versions of what it consists of, by name."""

    def share_threads(self, threads: int) -> None:  # noqa: B027
        """Have all files that this process opens from now on share so many threads.

        Files that are timed in turns must not disturb each other.
        """

    @abstractmethod
    def open(self, onnx: OnnxFile, threads: int = 0, level: str = DEFAULT_LEVEL) -> Session:
        """Open a file with so many threads (0: all available), unless threads are shared.

        Raises whatever the runtime raises for a file that it cannot run.
        """
