"""What was collected: the raw seconds of every process, and which series they belong to.

numpy and onnxruntime are all it needs, so that it runs where models are deployed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compress.timing.setting import parse_setting

KIND, SCHEMA = "compress-models timings", 1
"""What a file of timings says it is."""
CONTROL = "(control)"
"""A second copy of the baseline. No chain's text begins with a parenthesis."""
LEVELS = {f"(level {name})": name for name in ("disabled", "basic", "extended")}
"""The baseline at onnxruntime's other optimization levels."""
FLOOR = 0.01
"""How much faster than the default such a level must be, at least, to be the denominator.

Levels that are slower than this beyond doubt are not timed any further.
"""


@dataclass(frozen=True)
class Launched:
    """What one process found: batch (as text) -> candidate -> its series; or why nothing."""

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

    def series(self, setting: str, name: str) -> list[Mapping[str, Any] | None]:
        """Return a candidate's series, one per process that timed the setting (None: not it)."""
        wanted = parse_setting(setting)
        return [
            part.settings[str(wanted.batch)].get(name)
            for part in self.launched
            if part.threads == wanted.threads and not part.failure
        ]

    def failures(self, setting: str) -> tuple[str, ...]:
        threads = parse_setting(setting).threads
        return tuple(p.failure for p in self.launched if p.threads == threads and p.failure)


def process_ratio(
    baseline: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None
) -> float | None:
    """Return one process's speed-up, the median of ratios within rounds; None if either failed."""
    if baseline is None or candidate is None or baseline["error"] or candidate["error"]:
        return None
    return float(np.median(np.array(baseline["medians"]) / np.array(candidate["medians"])))


def timings_file(models: Mapping[str, str], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of timings holds: whose seconds (name -> SHA-256), and the seconds."""
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "models": dict(models),
        "timings": timings,
    }
