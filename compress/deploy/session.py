"""Sessions of onnxruntime on the CPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from compress.runtimes.base import DEFAULT_LEVEL, OnnxFile, Session
from compress.runtimes.onnxruntime_cpu import OnnxruntimeCpu, OrtSession
from compress.tasks.base import Tensors


def session(onnx: OnnxFile, threads: int = 0, optimize: bool = True) -> OrtSession:
    """Open a file, or the bytes of one, with `threads` threads (0: as many as there are cores).

    `optimize=False` switches every graph optimization off. Raises onnxruntime's own errors for
    a file that it cannot run.
    """
    return OnnxruntimeCpu().open(onnx, threads, DEFAULT_LEVEL if optimize else "disabled")


def arrays(inputs: Tensors) -> list[np.ndarray]:
    """Return input tensors as contiguous arrays on the CPU."""
    return [np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in inputs]


def predict(runner: Session, batches: Iterable[Tensors]) -> np.ndarray:
    """Return the logits of all batches in order, shape (N, classes)."""
    outputs = [
        runner.run(dict(zip(runner.names, arrays(inputs), strict=True))) for inputs in batches
    ]
    if not outputs:
        raise ValueError("there is no batch to predict")
    return np.concatenate(outputs)


def predict_in_streams(runner: Session, batches: Iterable[Tensors], streams: int = 0) -> np.ndarray:
    """Return the logits of all batches in order, shape (N, classes), some batches at a time.

    Each is run on the one thread of its session, `streams` beside one another (0: as many as there
    are cores), while the next ones are made: many batches take less time so than with all threads
    on each.
    """
    count = streams or os.cpu_count() or 1
    outputs: list[np.ndarray] = []
    with ThreadPoolExecutor(count, thread_name_prefix="predicting") as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for inputs in batches:
            waiting.append(pool.submit(predict, runner, [inputs]))
            if len(waiting) > 2 * count:
                outputs.append(waiting.popleft().result())
        outputs += [one.result() for one in waiting]
    if not outputs:
        raise ValueError("there is no batch to predict")
    return np.concatenate(outputs)


def split(inputs: Tensors, batch: int) -> list[Tensors]:
    """Cut inputs of N items into batches of at most `batch`."""
    return list(zip(*(tensor.split(batch) for tensor in inputs), strict=True))
