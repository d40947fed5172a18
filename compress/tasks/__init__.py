"""The kinds of tasks, and the options that each adds to suites and to the command line.

Imports nothing heavy: the command line asks for the options before it knows what it will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A key of suites and an option of the command line that belongs to a task."""

    kind: str
    """'str', 'int' or 'floats': the kind of its value in a suite."""
    help: str


OPTIONS: Mapping[str, Option] = {
    "mean": Option("floats", "Per channel, e.g. 0.485,0.456,0.406."),
    "std": Option("floats", "Per channel, for values in [0, 1]."),
    "size": Option("int", "Resize images to this side."),
    "augment": Option(
        "str",
        "none, or some of flip, crop, cutout and mixup joined by hyphens, such as flip-crop; by "
        "default what suits the data.",
    ),
}
