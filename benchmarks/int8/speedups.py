"""Speed-ups of files over the fastest float file, timed in one interleaved run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from compress.deploy.session import predict, session
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.summary import Timing, summarise

FLOAT = "float"


def timings_of(
    files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
) -> dict[str, Timing]:
    """Return the timing of each file, FLOAT among them, on one item at a time and all cores.

    The float file is timed at each of the optimization levels of the runtime, in fresh processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {one: Path(folder) / f"{number}.onnx" for number, one in enumerate(files)}
        expected = {}
        for one, path in paths.items():
            path.write_bytes(files[one])
            expected[one] = predict(session(files[one]), [tuple(map(torch.from_numpy, samples))])
        request = TimingRequest(
            paths, samples, expected, FLOAT, settings=("cpu",), effort=Effort(seconds)
        )
        found = summarise(collect(request))
    return {one: found[one, "cpu"] for one in files}


def speedup_of(timing: Timing) -> list[float]:
    """Return a speed-up and the ends of its 95 % interval; nothing where there is none."""
    if timing.speedup is None:
        return []
    return [round(x, 3) for x in (timing.speedup, timing.low or 0, timing.high or 0)]


def words(speedup: Sequence[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*speedup) if speedup else ""
