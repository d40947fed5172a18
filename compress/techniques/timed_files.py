"""Seconds of files on this machine's onnxruntime, as a step asks for them: measured once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from compress.context import StepContext
from compress.deploy.session import arrays
from compress.errors import UserError
from compress.lowrank.latency import Clock, Files
from compress.model import Model
from compress.runtimes.onnxruntime_cpu import versions
from compress.system.environment import cpu_info, cpu_threads
from compress.timing.launch import WorkerFailed
from compress.timing.trial import seconds_of

WHOLE_SECONDS = 2.0
"""What a whole model is timed for."""


def cached_clock(context: StepContext) -> Clock:
    """Return a clock whose answers the context's cache keeps, by machine, versions and files.

    It raises WorkerFailed where nothing can be timed.
    """
    question = {"cpu": list(cpu_info()), "threads": cpu_threads(), **versions()}

    def clock(
        files: Files, samples: Sequence[np.ndarray], seconds: float
    ) -> Mapping[str, Sequence[float]]:
        names = {name: hashlib.sha256(file).hexdigest() for name, file in files.items()}
        shapes = [list(one.shape) for one in samples]
        key = {"trial": names, "shapes": shapes, "seconds": seconds, **question}

        def measure() -> dict[str, list[float]]:
            found = seconds_of(files, samples, seconds)
            return {name: list(values) for name, values in found.items()}

        answer: Mapping[str, list[float]] = context.cached(key, measure)
        return answer

    return clock


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
    found = clock(files, arrays(model.example), times * WHOLE_SECONDS * len(files))
    if missing := files.keys() - found.keys():
        raise UserError(
            f"{who}: onnxruntime cannot run the file of the model ({min(missing)}), so latency "
            f"cannot be measured here: give macs"
        )
    return {name: float(np.median(values)) for name, values in found.items()}
