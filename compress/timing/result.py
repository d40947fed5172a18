"""What a timing found: raw seconds, and figures derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.timing.statistics import Ratio, speedup, spread


@dataclass(frozen=True)
class Repetition:
    """What one process found: batch size (as text) -> candidate -> its series, as JSON.

    `failure` says why there is nothing.
    """

    settings: Mapping[str, Mapping[str, Any]]
    failure: str = ""


@dataclass(frozen=True)
class Timing:
    """One file at one batch size. Figures are None where `error` says why.

    Milliseconds are per call (of the whole batch), `per_second` is items. `speedup` is over the
    baseline, with a 95 % interval from `low` to `high`; the baseline's own is 1, without one.
    """

    batch: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    iqr_ms: float | None = None
    per_second: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    processes: int = 0
    error: str = ""
    wrong: bool = False
    """Whether the error is the file's own (it did not run, or its outputs were others)."""
    calls: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """Per-call seconds, flat, one array per process (at most 32 of every block)."""
    medians: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """The median seconds of every round's block, one array per process."""

    @property
    def noisy(self) -> bool:
        """Whether half of the calls lie further apart than a fifth of the median."""
        return self.p50_ms is not None and (self.iqr_ms or 0) > 0.2 * self.p50_ms


@dataclass(frozen=True)
class Timings:
    """Timings by (candidate, batch size), and what they depend on."""

    rows: Mapping[tuple[str, int], Timing]
    baseline: str
    environment: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    """Sentences about processes that gave no result."""

    def __getitem__(self, key: tuple[str, int]) -> Timing:
        return self.rows[key]

    def raw(self) -> dict[str, np.ndarray]:
        """Return the raw seconds for an .npz: `<what>/<batch>/<process>/<candidate>`.

        `calls` are per-call seconds, `rounds` the medians of the rounds' blocks.
        """
        arrays = {}
        for (name, batch), row in self.rows.items():
            for number, seconds in enumerate(row.calls):
                arrays[f"calls/{batch}/{number}/{name}"] = seconds
            for number, seconds in enumerate(row.medians):
                arrays[f"rounds/{batch}/{number}/{name}"] = seconds
        return arrays


def summarise(
    repetitions: Sequence[Repetition],
    names: Sequence[str],
    batches: Sequence[int],
    baseline: str,
    seed: int,
    environment: Mapping[str, Any],
) -> Timings:
    """Derive every figure from what the processes found."""
    failures = tuple(part.failure for part in repetitions if part.failure)
    found = [part.settings for part in repetitions if not part.failure]
    rows: dict[tuple[str, int], Timing] = {}
    for batch in batches:
        series = {name: [part[str(batch)][name] for part in found] for name in names}
        for name in names:
            error = _error(series[name], failures)
            if error:
                rows[name, batch] = Timing(batch, error=error, wrong=bool(series[name]))
                continue
            over = None if _error(series[baseline], failures) else series[baseline]
            rows[name, batch] = _timing(batch, series[name], over, name == baseline, seed)
    return Timings(rows, baseline, environment, failures)


def _error(series: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> str:
    """Return the first error of a candidate: one wrong output in one process is enough."""
    if not series:
        return "; ".join(failures)
    return next((part["error"] for part in series if part["error"]), "")


def _timing(
    batch: int,
    series: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]] | None,
    is_baseline: bool,
    seed: int,
) -> Timing:
    medians = tuple(np.array(part["medians"]) for part in series)
    calls = tuple(np.concatenate([np.array(block) for block in part["calls"]]) for part in series)
    times = spread(np.concatenate(calls))
    ratio: Ratio | None = None
    if baseline is not None and not is_baseline:
        ratio = speedup([np.array(part["medians"]) for part in baseline], medians, seed)
    return Timing(
        batch=batch,
        p50_ms=times.p50_ms,
        p90_ms=times.p90_ms,
        iqr_ms=times.iqr_ms,
        per_second=1e3 * batch / times.p50_ms,
        speedup=1.0 if is_baseline else ratio.value if ratio else None,
        low=ratio.low if ratio else None,
        high=ratio.high if ratio else None,
        rounds=sum(map(len, medians)),
        processes=len(series),
        calls=calls,
        medians=medians,
    )
