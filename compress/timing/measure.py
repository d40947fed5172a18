"""Paired timing of ONNX files: fresh processes, interleaved rounds, checked outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.timing.collect import Effort, collect
from compress.timing.setting import DEFAULT
from compress.timing.summary import Timings, summarise


def measure(
    files: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    baseline: str,
    settings: Sequence[str] = DEFAULT,
    effort: Effort | None = None,
    seed: int = 0,
    **options: Any,
) -> Timings:
    """Time ONNX files against each other with onnxruntime on the CPU.

    `samples` holds one array per input of the files, each of shape (M, ...), real and prepared;
    `expected` the verified logits of every file for them, (M, classes): timed outputs may
    deviate from them by `tolerance` (0.02) of their norm. `settings` are names as
    `compress.timing.setting` reads them; `threads` are those of a setting that names none, by
    default the cores at hand. A second copy of the baseline and the baseline at onnxruntime's
    other optimization levels take part, all files at the default level.

    A file that fails gets its error and the others are still timed; so is a process that
    crashes or hangs, as `Timings.failures`. Raises UserError for a call that cannot work.
    """
    raw_timings = collect(
        files,
        samples,
        expected,
        baseline=baseline,
        settings=settings,
        effort=effort or Effort(),
        seed=seed,
        **options,
    )
    return summarise(raw_timings, seed)
