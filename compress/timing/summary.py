"""What a timing found: figures, intervals and verdicts, derived from raw seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compress.timing.multiplicity import holm
from compress.timing.raw_timings import CONTROL, FLOOR, LEVELS, RawTimings, process_ratio
from compress.timing.setting import parse_setting
from compress.timing.statistics import Ratio, compare, p_value, spread
from compress.timing.worker import DIFFERENT

LEVEL = 0.05
"""Of all the verdicts of a table at one setting, the chance that any is false."""
TRUSTED = 0.05
"""Where the margin or the control's interval is wider, latencies are not to be trusted."""
NOISY = 0.2
"""A row is noisy if half of its calls lie further apart than this share of the median."""

FASTER, SLOWER, INDISTINGUISHABLE = "faster", "slower", "indistinguishable"


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
    calls: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """Per-call seconds, flat, one array per process (at most 8 of every block)."""
    medians: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """The median seconds of every round's block, one array per process."""

    @property
    def noisy(self) -> bool:
        return self.p50_ms is not None and (self.iqr_ms or 0) > NOISY * self.p50_ms


@dataclass(frozen=True)
class Control:
    """What is known of a setting as a whole.

    `ratio` compares the baseline with a second copy of itself (None if it could not be timed).
    `margin` (a fraction) is how far such an A/A ratio strays from 1: the root mean square of its
    logarithm over k processes, divided by sqrt(k), since a speed-up comes from k processes too.
    A speed-up must exceed it to be called one. `denominator` is the optimization level at which
    the float baseline is fastest, '' for the default; `levels` are its speed-ups at the others.
    """

    ratio: Ratio | None
    margin: float
    denominator: str
    denominator_gain: float | None
    levels: Mapping[str, float]
    processes: int

    @property
    def trusted(self) -> bool:
        """Whether the control is narrow enough for small differences to mean anything."""
        return not self.doubts

    @property
    def doubts(self) -> list[str]:
        """Why the control is not to be trusted, in words."""
        if self.ratio is None:
            return ["the second copy of the baseline, by which they would be judged, was not timed"]
        if self.ratio.processes < 2:
            return ["the baseline and its copy were timed once, so no difference can be judged"]
        sizes = {
            "on average two copies of one file differ by {}": self.margin,
            "how two copies of one file compare is known to ± {} only": self._half,
            "two copies of one file differ by {} throughout": astray(self.ratio),
        }
        return [w.format(f"{100 * x:.1f} %") for w, x in sizes.items() if x > TRUSTED]

    @property
    def bar(self) -> float:
        """How far from 1 (a fraction) a speed-up must be beyond doubt: the margin.

        Where the control's interval leaves out 1, it is at least how far the control strays:
        what sets two copies of one file apart in every process does not average out. Where the
        control is not to be trusted it is the control's own half interval, if that is wider, and
        at least `TRUSTED`.
        """
        least = max(self.margin, astray(self.ratio))
        return least if self.trusted else max(least, self._half, TRUSTED)

    @property
    def _half(self) -> float:
        """Half of the control's interval, a fraction; infinite if there is none."""
        if self.ratio is None or self.ratio.processes < 2:
            return float("inf")
        return float(self.ratio.high / self.ratio.value - 1)

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "control": ratio and ratio.value,
            "control_low": ratio and known(ratio.low, ratio),
            "control_high": ratio and known(ratio.high, ratio),
            "margin": self.margin,
            "bar": self.bar if np.isfinite(self.bar) else None,
            "trusted": self.trusted,
            "doubts": self.doubts,
            "processes": self.processes,
            "denominator": self.denominator and f"optimization level {self.denominator!r}",
            "denominator_gain": self.denominator_gain,
            "levels": dict(self.levels),
        }


def astray(control: Ratio | None) -> float:
    """Return how far a control is from 1, a fraction, if that is beyond doubt; else 0."""
    if control is None or control.low <= 1 <= control.high:
        return 0.0
    return float(np.expm1(abs(np.log(control.value))))


@dataclass(frozen=True)
class Timings:
    """Timings by (candidate, setting), and what they depend on."""

    rows: Mapping[tuple[str, str], Timing]
    controls: Mapping[str, Control]
    raw_timings: RawTimings
    failures: tuple[str, ...] = ()
    """Sentences about processes that gave no result."""

    def __getitem__(self, key: tuple[str, str]) -> Timing:
        return self.rows[key]

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.raw_timings.environment

    def about(self) -> dict[str, Any]:
        """Return by setting what a table says of its latencies (JSON)."""
        seconds = self.raw_timings.seconds
        return {name: c.to_json() | {"seconds": seconds} for name, c in self.controls.items()}

    def raw(self) -> dict[str, np.ndarray]:
        """Return the raw seconds for an .npz: `<what>/<setting>/<process>/<candidate>`.

        `calls` are per-call seconds, `rounds` the medians of the rounds' blocks. The control and
        the optimization levels are among the candidates, in parentheses.
        """
        arrays = {}
        for setting in self.raw_timings.settings:
            for name in self.raw_timings.names:
                for number, part in enumerate(self.raw_timings.series(setting, name)):
                    if part is None or part["error"]:
                        continue
                    place = f"{setting}/{number}/{name}"
                    arrays[f"calls/{place}"] = np.concatenate(part["calls"])
                    arrays[f"rounds/{place}"] = np.array(part["medians"])
        return arrays


def summarise(raw_timings: RawTimings, seed: int = 0) -> Timings:
    """Derive every figure from what the processes found.

    Verdicts: a speed-up's p is against lying within the control's bar, two-sided, by Student's t
    on the bootstrap's standard error; Holm's procedure keeps the chance of any false verdict among
    all files of a setting at 5 %. Where the control is not to be trusted, what does not exceed the
    bar is not called indistinguishable either: it has no verdict.
    """
    rows: dict[tuple[str, str], Timing] = {}
    controls = {}
    files = [name for name in raw_timings.names if name != CONTROL and name not in LEVELS]
    for setting in raw_timings.settings:
        found = _Setting(raw_timings, setting, seed)
        controls[setting] = found.control
        rows |= {(name, setting): row for name, row in found.rows(files).items()}
    failures = dict.fromkeys(p.failure for p in raw_timings.launched if p.failure)
    return Timings(rows, controls, raw_timings, tuple(failures))


class _Setting:
    """One setting's series, its control and its denominator."""

    def __init__(self, raw_timings: RawTimings, setting: str, seed: int) -> None:
        self.raw_timings, self.setting, self.seed = raw_timings, setting, seed
        self.batch = parse_setting(setting).batch
        self.series = {name: raw_timings.series(setting, name) for name in raw_timings.names}
        self.baseline = raw_timings.baseline
        ratio = self.ratio(self.baseline, CONTROL)
        margin = self._margin()
        levels = {
            name: found
            for level, name in LEVELS.items()
            if (found := self.ratio(self.baseline, level)) is not None
        }
        # One that was left out of the later processes is too slow, and known from too few.
        stayed = {
            name: levels[name]
            for level, name in LEVELS.items()
            if name in levels and self.series[level][-1] is not None
        }
        fastest = self._fastest(stayed, max(margin, astray(ratio), FLOOR))
        self.level = next((key for key, name in LEVELS.items() if name == fastest), self.baseline)
        self.control = Control(
            ratio,
            margin,
            fastest,
            levels[fastest].value if fastest else None,
            {name: round(found.value, 4) for name, found in levels.items()},
            sum(part is not None for part in self.series[self.baseline]),
        )

    def ratio(self, over: str, name: str) -> Ratio | None:
        """Return the speed-up of one candidate over another; None if there is none."""
        pairs = [
            (np.array(b["medians"]), np.array(c["medians"]))
            for b, c in zip(self.series[over], self.series[name], strict=True)
            if b is not None and c is not None and not b["error"] and not c["error"]
        ]
        if not pairs:
            return None
        return compare([b for b, _ in pairs], [c for _, c in pairs], self.seed)

    def _margin(self) -> float:
        pairs = zip(self.series[self.baseline], self.series[CONTROL], strict=True)
        logs = [np.log(ratio) for pair in pairs if (ratio := process_ratio(*pair)) is not None]
        # Of the ratio of all processes together, as a speed-up is.
        return float(np.expm1(np.sqrt(np.mean(np.square(logs)) / len(logs)))) if logs else 0.0

    def _fastest(self, levels: Mapping[str, Ratio], margin: float) -> str:
        """Return the level that is faster than the default beyond doubt, the fastest of them."""
        adjusted = holm([p_value(ratio, margin) for ratio in levels.values()])
        sure = [
            name
            for name, p in zip(levels, adjusted, strict=True)
            if p <= LEVEL and levels[name].value > 1
        ]
        return max(sure, key=lambda name: levels[name].value, default="")

    def rows(self, files: Sequence[str]) -> dict[str, Timing]:
        rows = {name: self._row(name) for name in files}
        if self._row(self.baseline).error:
            return rows  # one that was caught in any process is no denominator
        ratios = {
            name: ratio
            for name in files
            if not rows[name].error
            and name != self.level
            and (ratio := self.ratio(self.level, name)) is not None
        }
        adjusted = holm([p_value(ratio, self.control.bar) for ratio in ratios.values()])
        for (name, ratio), p in zip(ratios.items(), adjusted, strict=True):
            rows[name] = _compared(rows[name], ratio, p, self.control.trusted)
        return rows

    def _row(self, name: str) -> Timing:
        started = [part for part in self.series[name] if part is not None]
        errors = [part["error"] for part in started if part["error"]]
        series = [part for part in started if not part["error"]]
        other = [error for error in errors if error.startswith(DIFFERENT)]
        if other or not series:
            # One other answer is one too many; what failed in every process is the file's fault.
            reason = next(
                iter([*other, *errors]), "; ".join(self.raw_timings.failures(self.setting))
            )
            return Timing(self.batch, error=reason, wrong=bool(errors))
        medians = tuple(np.array(part["medians"]) for part in series)
        calls = tuple(np.concatenate(part["calls"]) for part in series)
        times = spread(np.concatenate(calls))
        return Timing(
            batch=self.batch,
            p50_ms=times.p50_ms,
            p90_ms=times.p90_ms,
            iqr_ms=times.iqr_ms,
            per_second=1e3 * self.batch / times.p50_ms,
            speedup=1.0 if name == self.level else None,
            rounds=sum(map(len, medians)),
            processes=len(series),
            calls=calls,
            medians=medians,
        )


def _compared(row: Timing, ratio: Ratio, p: float, trusted: bool) -> Timing:
    verdict = INDISTINGUISHABLE if trusted else ""
    if p <= LEVEL:
        verdict = FASTER if ratio.value > 1 else SLOWER
    low, high = known(ratio.low, ratio), known(ratio.high, ratio)
    return replace(row, speedup=ratio.value, low=low, high=high, verdict=verdict)


def known(end: float, ratio: Ratio) -> float | None:
    """Return an end of an interval; None where one process alone leaves it open."""
    return end if ratio.processes > 1 else None
