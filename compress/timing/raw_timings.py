"""What was collected: the raw seconds of every process, and which series they belong to.

numpy and onnxruntime are all it needs, so that it runs where models are deployed.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compress.timing.setting import Setting, parse_setting

KIND, SCHEMA = "compress-models timings", 1
"""What a file of timings identifies itself by."""
CONTROL = "(control)"
"""A second copy of the baseline. No chain's text begins with a parenthesis."""
LEVELS = {f"(level {name})": name for name in ("disabled", "basic", "extended")}
"""The baseline at onnxruntime's other optimization levels."""
FLOOR = 0.01
"""By what fraction such a level must be faster than the default to be the denominator.

Levels that certainly are not are not timed any further.
"""


@dataclass(frozen=True)
class Launched:
    """The result of one process: batch (as text) -> candidate -> its series; or its failure."""

    threads: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class RawTimings:
    """All raw seconds of one machine. `threads` 0 of a setting stand for `all_threads`."""

    names: tuple[str, ...]
    baseline: str
    settings: tuple[str, ...]
    all_threads: int
    launched: tuple[Launched, ...]
    seconds: float
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RawTimings:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError for other content."""
        return RawTimings(
            names=tuple(map(str, values["names"])),
            baseline=str(values["baseline"]),
            settings=tuple(parse_setting(name).name for name in values["settings"]),
            all_threads=int(values["all_threads"]),
            launched=tuple(Launched(**part) for part in values["launched"]),
            seconds=float(values["seconds"]),
            environment=dict(values["environment"]),
        )

    def series(self, setting: str, name: str) -> list[Measured]:
        """Return a candidate's series, one per process that timed the setting (None: not it)."""
        return series_of(self.launched, parse_setting(setting), name)

    def failures(self, setting: str) -> tuple[str, ...]:
        threads = parse_setting(setting).threads
        return tuple(p.failure for p in self.launched if p.threads == threads and p.failure)


Measured = Mapping[str, Any] | None
"""The series of a candidate in one process (see `interleave.Series`); None if it was not timed."""


def series_of(launched: Iterable[Launched], setting: Setting, name: str) -> list[Measured]:
    """Return a candidate's series, one per process that timed the setting."""
    return [
        part.settings[str(setting.batch)].get(name)
        for part in launched
        if part.threads == setting.threads and not part.failure
    ]


def pairs(
    baseline: Sequence[Measured], candidate: Sequence[Measured]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the medians per round of both, for every process that timed both without an error."""
    return [
        (np.array(b["medians"]), np.array(c["medians"]))
        for b, c in zip(baseline, candidate, strict=True)
        if b is not None and c is not None and not b["error"] and not c["error"]
    ]


def process_ratios(baseline: Sequence[Measured], candidate: Sequence[Measured]) -> list[float]:
    """Return the speed-ups of such processes, each the median of the ratios within its rounds."""
    return [float(np.median(b / c)) for b, c in pairs(baseline, candidate)]


def timings_file(models: Mapping[str, str], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of timings holds: the files (name -> SHA-256), and their seconds."""
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "models": dict(models),
        "timings": timings,
    }
