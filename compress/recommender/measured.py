"""What a search knows of a chain, and of a trial: figures and reasons, as lines of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from compress.recommender.draw import Value
from compress.system.files import append_line

SCREENED, SHORT, FULL = "untrained", "short", "full"
"""How far a trial went: its chain without training, with little of it, with all of it."""
OK, CANNOT_WIN, TOO_FAR, IDLE, FAILED, NO_TIME = (
    *("ok", "cannot win", "loses too much", "makes nothing cheaper", "failed", "no time"),
)
"""How a trial ended."""
UNFINISHED = "unfinished"
"""The state of a trial that has not ended, in the file of trials."""


@dataclass(frozen=True)
class Measured:
    """A chain on the validation items, in comparison with the baseline."""

    chain: str
    status: str = "ok"
    """'ok', 'failed' or 'unverified', as of a row."""
    error: str = ""
    items: int = 0
    right: int = 0
    lost: int = 0
    gained: int = 0
    onnx_bytes: int = 0
    macs: int = 0
    params: int = 0
    speedup: float | None = None
    """Over the baseline, one item at a time, with a 95 % interval."""
    speedup_low: float | None = None
    speedup_high: float | None = None
    ms: float | None = None
    timed: str = ""
    """The chain whose file was timed: this one's, or that of the same shapes, untrained."""
    seconds: float = 0.0
    """What it took in this search; steps that were there took nothing."""
    candidate: bool = True
    """Whether it is worth a thought: not of a student that was never trained."""

    @property
    def timed_untrained(self) -> bool:
        """Whether its times are those of another file: of the same shapes, untrained."""
        return bool(self.timed) and self.timed != self.chain

    @property
    def accuracy(self) -> float:
        return self.right / self.items if self.items else 0.0

    @property
    def change(self) -> float:
        """Accuracy less the baseline's, a fraction."""
        return (self.gained - self.lost) / self.items if self.items else 0.0


@dataclass(frozen=True)
class Trial:
    """A drawn chain and how it went."""

    number: int
    params: Mapping[str, Value]
    chain: str
    """With all its training, whether it got that far or not."""
    state: str
    reached: str = ""
    reason: str = ""
    measured: tuple[Measured, ...] = ()
    """From the least training to the most."""
    seconds: float = 0.0
    drawn: str = ""
    """'warm start', or '' for the sampler's."""

    @property
    def last(self) -> Measured | None:
        """The sound measurement with the most training; None if there is none."""
        sound = [one for one in self.measured if one.status == "ok"]
        return sound[-1] if sound else None


@dataclass
class Notebook:
    """The trials of a search, in a file that only grows: a line each, or several until it ends."""

    path: Path | None = None
    trials: list[Trial] = field(default_factory=list)
    """Those that have ended."""
    unfinished: dict[str, Trial] = field(default_factory=dict)
    """By its chain, what is known of a trial that has not ended."""

    @staticmethod
    def read(path: Path) -> Notebook:
        """Return the trials of a file; a half-written line (a kill) is skipped."""
        notebook = Notebook(path)
        if path.exists():
            for trial in read_trials(path.read_bytes().splitlines()):
                notebook._take(trial)
        return notebook

    def add(self, trial: Trial) -> None:
        """Take a trial in and write it down: one that has ended, or what is known of one so far."""
        self._take(trial)
        if self.path is not None:
            append_line(self.path, asdict(trial))

    def number_of(self, params: Mapping[str, Value], chain: str) -> int:
        """Return the number of a draw's trial: that of the one it had no time for, or a new one."""
        earlier = self._without_time(params, chain)
        return earlier.number if earlier else max((t.number for t in self.trials), default=-1) + 1

    def _take(self, trial: Trial) -> None:
        """Add a trial, or put it in the place of an earlier one of its draw, which had no time."""
        if trial.state == UNFINISHED:
            self.unfinished[trial.chain] = trial
            return
        self.unfinished.pop(trial.chain, None)
        earlier = self._without_time(trial.params, trial.chain)
        if earlier is None:
            self.trials.append(trial)
            return
        if trial.state == NO_TIME and len(trial.measured) < len(earlier.measured):
            trial = replace(trial, measured=earlier.measured, reached=earlier.reached)
        self.trials[self.trials.index(earlier)] = trial

    def _without_time(self, params: Mapping[str, Value], chain: str) -> Trial | None:
        late = [trial for trial in self.trials if trial.state == NO_TIME]
        return next((t for t in late if t.params == params or t.chain == chain), None)

    @property
    def done(self) -> int:
        """How many trials there was time for."""
        return sum(trial.state != NO_TIME for trial in self.trials)

    @property
    def late(self) -> list[Mapping[str, Value]]:
        """The draws that there was no time for: they come first when the search goes on."""
        return [trial.params for trial in self.trials if trial.state == NO_TIME]

    @property
    def candidates(self) -> dict[str, Measured]:
        """Every sound chain that was measured, by its text, whatever its training."""
        found: dict[str, Measured] = {}
        known = [*self.trials, *self.unfinished.values()]
        # A cut that makes nothing cheaper is not worth naming.
        for trial in (trial for trial in known if trial.state != IDLE):
            for one in trial.measured:
                if one.status == "ok" and one.items and one.candidate:
                    found[one.chain] = one
        return found


def read_trials(lines: Iterable[bytes]) -> Iterable[Trial]:
    """Yield the trials of a file's lines; what is no trial is skipped."""
    for line in lines:
        try:
            values: Any = json.loads(line)
            yield msgspec.convert(values, Trial)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            continue
