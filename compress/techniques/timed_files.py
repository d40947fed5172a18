"""Seconds of files on this machine's onnxruntime, as a step asks for them: measured once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from compress import counts
from compress.context import StepContext
from compress.deploy.session import arrays
from compress.errors import UserError
from compress.int8.placement import TIMING, Compared
from compress.lowrank.latency import Clock, Files
from compress.model import Model
from compress.runtimes.onnxruntime_cpu import versions
from compress.stats.levels import ALPHA
from compress.system.environment import cpu_info, cpu_threads
from compress.timing.launch import WorkerFailed
from compress.timing.trial import seconds_of

WHOLE_SECONDS = 2.0
"""What a whole model is timed for."""
LEAST_MACS = 5e6
"""Below, a call takes some microseconds, and what it takes is not worth measuring."""
NOISE = 0.02
"""By how much the times of one file, opened twice in a process, may differ in all of its rounds."""


def is_large(model: Model) -> bool:
    """Return whether files of a model are worth timing, and most of their bytes are weights."""
    return counts.count(model.module, model.example).macs >= LEAST_MACS


def cached_clock(context: StepContext) -> Clock:
    """Return a clock whose answers the context's cache keeps, by machine, versions and files.

    It raises WorkerFailed where nothing can be timed.
    """

    def clock(
        files: Files, samples: Sequence[np.ndarray], seconds: float
    ) -> Mapping[str, Sequence[float]]:
        key = {"trial": _names(files), **_setting(samples, seconds)}

        def measure() -> dict[str, list[float]]:
            found = seconds_of(files, samples, seconds)
            return {name: list(values) for name, values in found.items()}

        answer: Mapping[str, list[float]] = context.cached(key, measure)
        return answer

    return clock


def compared(
    context: StepContext,
    files: Files,
    samples: Sequence[np.ndarray],
    seconds: float,
    took: Mapping[str, float],
    now: Callable[[], float] = time.monotonic,
) -> Compared:
    """Time files in turns, or return what the context's cache has of them.

    The answer says what it took when it was measured, with what went by before (`took`). Raises
    WorkerFailed where nothing can be timed.
    """

    def measure() -> dict[str, Any]:
        started = now()
        found = seconds_of(files, samples, seconds)
        times = {name: list(values) for name, values in found.items()}
        return {"times": times, "took": {**took, TIMING: now() - started}}

    key = {"comparison": _names(files), **_setting(samples, seconds)}
    answer = context.cached(key, measure)
    times = {name: np.array(values) for name, values in answer["times"].items()}
    return Compared(times, answer["took"])


def _names(files: Files) -> dict[str, str]:
    return {name: hashlib.sha256(file).hexdigest() for name, file in files.items()}


def _setting(samples: Sequence[np.ndarray], seconds: float) -> dict[str, Any]:
    """Return what seconds depend on besides files."""
    shapes = [list(one.shape) for one in samples]
    machine = {"cpu": list(cpu_info()), "threads": cpu_threads(), **versions()}
    return {"shapes": shapes, "seconds": seconds, **machine}


def clock_of(context: StepContext, who: str) -> Clock:
    """Return a cached clock that raises UserError, in the name of a technique, where it fails."""
    cached = cached_clock(context)

    def clock(
        files: Files, samples: Sequence[np.ndarray], seconds: float
    ) -> Mapping[str, Sequence[float]]:
        try:
            return cached(files, samples, seconds)
        except WorkerFailed as error:
            raise UserError(f"{who}: nothing could be timed here: {error}") from error

    return clock


def whole_seconds(
    files: Files, model: Model, clock: Clock, who: str, times: int = 1
) -> dict[str, float]:
    """Return the median seconds of whole models' files for one item, timed in turns.

    `times` says how many times as long as usual they are timed.
    """
    found = whole_rounds(files, model, clock, who, times, "give macs")
    return {name: float(np.median(values)) for name, values in found.items()}


def whole_rounds(
    files: Files, model: Model, clock: Clock, who: str, times: int = 1, advice: str = ""
) -> Mapping[str, Sequence[float]]:
    """Return the seconds of whole models' files for one item, round by round, timed in turns.

    `advice` says what to do where that can't be.
    """
    found = clock(files, arrays(model.example), times * WHOLE_SECONDS * len(files))
    if missing := files.keys() - found.keys():
        raise UserError(
            f"{who}: onnxruntime cannot run the file of the model ({min(missing)}), so latency "
            f"cannot be measured here{advice and f': {advice}'}"
        )
    return found


@dataclass(frozen=True)
class Slowdown:
    """How many times as long as another file one takes: the median over rounds, its interval."""

    value: float
    low: float
    high: float

    @property
    def slower(self) -> bool:
        """Whether it is shown to take longer."""
        return self.low > 1 + NOISE

    @property
    def faster(self) -> bool:
        """Whether it is shown to take less time."""
        return self.high < 1 - NOISE


def slowdown(after: Sequence[float], before: Sequence[float]) -> Slowdown:
    """Compare two files round by round.

    The interval of the median is that of order statistics, of at least 95 % (David and Nagaraja
    2003, section 7.1): it asks for no distribution, and a load that comes and goes has little say.
    """
    ratios = np.sort(np.asarray(after) / np.asarray(before))
    count = len(ratios)
    below = np.cumsum([comb(count, number) for number in range(count)]) / 2**count
    out = max(int((below <= ALPHA / 2).sum()) - 1, 0)
    return Slowdown(float(np.median(ratios)), float(ratios[out]), float(ratios[-1 - out]))
