"""The results of a timing: figures, intervals and verdicts, derived from raw seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compress.stats.control import Control, control_margin
from compress.stats.ratios import Ratio, speedup
from compress.stats.spread import is_noisy, spread
from compress.stats.verdicts import speed_verdicts, surely_fastest
from compress.timing.raw_timings import (
    CONTROL,
    FLOOR,
    LEVELS,
    RawTimings,
    pairs,
    process_ratios,
)
from compress.timing.setting import parse_setting
from compress.timing.worker import DIFFERENT


@dataclass(frozen=True)
class Timing:
    """One file at one setting. Figures are None where `error` says why.

    Milliseconds are per call (of the whole batch), `per_second` is items. `speedup` is over the
    denominator, with a 95 % interval from `low` to `high`.
    """

    batch: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    iqr_ms: float | None = None
    per_second: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    rounds: int = 0
    processes: int = 0
    error: str = ""
    wrong: bool = False
    """Whether the error is the file's own (it did not run, or its outputs were others)."""

    @property
    def noisy(self) -> bool:
        return is_noisy(self.p50_ms, self.iqr_ms)


@dataclass(frozen=True)
class SettingControl(Control):
    """What holds for a setting as a whole: its A/A control, and what speed-ups divide.

    `denominator` is the optimization level at which the float baseline is fastest, '' for the
    default; `levels` are its speed-ups at the others.
    """

    denominator: str
    denominator_gain: float | None
    levels: Mapping[str, float]
    processes: int

    def to_json(self) -> dict[str, Any]:
        low, high = self.ratio.interval if self.ratio else (None, None)
        return {
            "control": self.ratio and self.ratio.value,
            "control_low": low,
            "control_high": high,
            "margin": self.margin,
            "bar": self.bar if np.isfinite(self.bar) else None,
            "trusted": self.trusted,
            "untrusted_because": self.untrusted_because,
            "processes": self.processes,
            "denominator": self.denominator and f"optimization level {self.denominator!r}",
            "denominator_gain": self.denominator_gain,
            "levels": dict(self.levels),
        }


@dataclass(frozen=True)
class Timings:
    """Timings by (candidate, setting), and what they depend on."""

    rows: Mapping[tuple[str, str], Timing]
    controls: Mapping[str, SettingControl]
    raw_timings: RawTimings
    failures: tuple[str, ...] = ()
    """Sentences about processes that gave no result."""

    def __getitem__(self, key: tuple[str, str]) -> Timing:
        return self.rows[key]

    def about(self) -> dict[str, Any]:
        """Return by setting what a table says of its latencies (JSON)."""
        raw = self.raw_timings
        more = {"seconds": raw.seconds, "all_threads": raw.all_threads}
        return {name: control.to_json() | more for name, control in self.controls.items()}


def error_of(raw_timings: RawTimings, setting: str, name: str) -> tuple[str, bool]:
    """Return why a file has no figures at a setting ('' if it has), and whether that is its fault.

    Wrong outputs in one process are enough; so is an error in every process.
    """
    started = [part for part in raw_timings.series(setting, name) if part is not None]
    errors = [part["error"] for part in started if part["error"]]
    wrong = [error for error in errors if error.startswith(DIFFERENT)]
    if not wrong and len(errors) < len(started):
        return "", False
    reason = next(iter([*wrong, *errors]), "; ".join(raw_timings.failures(setting)))
    return reason or "no process has timed it", bool(errors)


def summarise(raw_timings: RawTimings, seed: int = 0) -> Timings:
    """Derive every figure from the raw seconds of all processes.

    Verdicts: a speed-up's p is against lying within the control's bar, two-sided, by Student's t
    on the bootstrap's standard error; Holm's procedure keeps the chance of any false verdict among
    all files of a setting at 5 %. Where the control is not to be trusted, what does not exceed the
    bar is not called indistinguishable either: it has no verdict.
    """
    rows: dict[tuple[str, str], Timing] = {}
    controls = {}
    files = [name for name in raw_timings.names if name != CONTROL and name not in LEVELS]
    for setting in raw_timings.settings:
        own = _Setting(raw_timings, setting, seed)
        controls[setting] = own.control
        rows |= {(name, setting): row for name, row in own.rows(files).items()}
    failures = dict.fromkeys(p.failure for p in raw_timings.launched if p.failure)
    return Timings(rows, controls, raw_timings, tuple(failures))


class _Setting:
    """One setting's series, its control and its denominator."""

    def __init__(self, raw_timings: RawTimings, setting: str, seed: int) -> None:
        self.raw_timings, self.setting, self.seed = raw_timings, setting, seed
        self.batch = parse_setting(setting).batch
        self.series = {name: raw_timings.series(setting, name) for name in raw_timings.names}
        self.baseline = raw_timings.baseline
        ratios = process_ratios(self.series[self.baseline], self.series[CONTROL])
        control = Control(self.ratio(self.baseline, CONTROL), control_margin(ratios))
        levels = {
            name: ratio
            for level, name in LEVELS.items()
            if level in self.series and (ratio := self.ratio(self.baseline, level)) is not None
        }
        # One that was left out of later processes is too slow, and was timed in too few.
        stayed = {
            name: levels[name]
            for level, name in LEVELS.items()
            if name in levels and self.series[level][-1] is not None
        }
        fastest = surely_fastest(stayed, max(control.margin, control.bias, FLOOR))
        self.level = next((key for key, name in LEVELS.items() if name == fastest), self.baseline)
        self.control = SettingControl(
            control.ratio,
            control.margin,
            fastest,
            levels[fastest].value if fastest else None,
            {name: round(ratio.value, 4) for name, ratio in levels.items()},
            sum(part is not None for part in self.series[self.baseline]),
        )

    def ratio(self, over: str, name: str) -> Ratio | None:
        """Return the speed-up of one candidate over another; None if there is none."""
        timed = pairs(self.series[over], self.series[name])
        if not timed:
            return None
        baseline, candidate = zip(*timed, strict=True)
        return speedup(baseline, candidate, self.seed)

    def rows(self, files: Sequence[str]) -> dict[str, Timing]:
        rows = {name: self._row(name) for name in files}
        if self._row(self.baseline).error:
            return rows  # wrong outputs in one process: nothing can be compared with it
        ratios = {
            name: ratio
            for name in files
            if not rows[name].error
            and name != self.level
            and (ratio := self.ratio(self.level, name)) is not None
        }
        verdicts = speed_verdicts(list(ratios.values()), self.control.bar, self.control.trusted)
        for (name, ratio), verdict in zip(ratios.items(), verdicts, strict=True):
            low, high = ratio.interval
            rows[name] = replace(
                rows[name], speedup=ratio.value, low=low, high=high, verdict=verdict
            )
        return rows

    def _row(self, name: str) -> Timing:
        error, wrong = error_of(self.raw_timings, self.setting, name)
        if error:
            return Timing(self.batch, error=error, wrong=wrong)
        series = [part for part in self.series[name] if part is not None and not part["error"]]
        times = spread(np.concatenate([np.concatenate(part["calls"]) for part in series]))
        return Timing(
            batch=self.batch,
            p50_ms=times.p50_ms,
            p90_ms=times.p90_ms,
            iqr_ms=times.iqr_ms,
            per_second=1e3 * self.batch / times.p50_ms,
            speedup=1.0 if name == self.level else None,
            rounds=sum(len(part["medians"]) for part in series),
            processes=len(series),
        )
