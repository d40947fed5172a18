"""A row of a run: its steps, what was measured, and why a figure is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

SCHEMA = 2
BASELINE = "baseline"
MARGIN = 1.0
"""Points: by default, a loss of accuracy that stays below this does not matter."""
COUNTS = "counts"
"""The kind of log entry of what the counts of a model leave out."""
EXECUTION = "executed"
"""The kind of the log line that says what onnxruntime executes, and on which CPU."""
CONTROL = "control"
"""The role of a row that was added because another row is compared with it."""

Key = tuple[str, int]
"""A row's chain text and seed."""


@dataclass(frozen=True)
class Step:
    """A step of a chain, so that readers of results need not parse its text."""

    name: str
    text: str
    trains: bool = False
    lowers: bool = False
    builds: bool = False
    """Whether its output is a model that the step has built: a student."""
    restarts: bool = False
    steps: tuple[Step, ...] = ()
    """What a `repeat` repeats."""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Step:
        return msgspec.convert(values, Step)


def flat(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield every step that is a technique, in order; for a `repeat`, those it repeats."""
    for step in steps:
        yield from flat(step.steps) if step.steps else (step,)


@dataclass(frozen=True)
class Record:
    """Raw facts only: figures that follow from them are derived when results are read."""

    chain: str
    seed: int
    status: str
    """'ok', 'failed', or 'unverified': the file was not shown to compute what its module does."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Counts, bytes, seconds, and the results of the verification and the user's own metric."""
    error: str = ""
    notes: tuple[str, ...] = ()
    """From the steps and the measuring."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Column -> why it is empty."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files that `files` names, and of what the row depends on."""
    log: tuple[Mapping[str, Any], ...] = ()
    role: str = ""
    control: str = ""
    """The chain of the row that is this one's control of equal cost; '' if it has none."""
    steps: tuple[Step, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Paths in the run's folder: `onnx` (of a sound row), `answers`."""

    @property
    def key(self) -> Key:
        return self.chain, self.seed

    @property
    def name(self) -> str:
        """The name under which the row's file is timed."""
        return candidate_name(self.key)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Record:
        """Read what `asdict` gave. Raises ValueError for other JSON; further keys are ignored."""
        return msgspec.convert(values, Record)


def candidate_name(key: Key) -> str:
    """Return the name under which a row's file is timed."""
    return f"{key[0]} [seed {key[1]}]"
