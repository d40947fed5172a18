"""A user's own metric: a function of their Python file, beside accuracy in every row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.system.files import sha256
from compress.tasks.base import Task
from compress.zoo.code import load_function

Function = Callable[[np.ndarray, np.ndarray], Any]
"""(outputs, targets) -> a number."""


@dataclass(frozen=True)
class Metric:
    """A function of outputs (float32, shape (N, ...)) and targets (N,), and its name.

    Whether more of it is better is for its reader to know: no verdict rests on it.
    """

    name: str
    function: Function
    file: Path | None = None
    """The file that it was imported from; None for a function from a Python user."""
    of_task: bool = False
    """Whether it is the task's own figure, so known wherever the data is."""

    def identity(self) -> dict[str, str]:
        """Return what distinguishes this metric from others: its name and its file (JSON)."""
        content = "" if self.file is None else sha256(self.file.read_bytes())
        return {"name": self.name, "file": content}

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float | None, str]:
        """Return the value and '', or None and the reason why there is no finite number."""
        try:
            # Copies: what the function does to its arguments must not reach other figures.
            value = self.function(outputs.astype(np.float32), targets.copy())
            number = np.asarray(value)
        except Exception as error:  # the function is the user's: it may raise anything
            return None, f"the metric {self.name} raised {type(error).__name__}: {error}"
        if number.shape or number.dtype.kind not in "biuf" or not np.isfinite(number):
            return None, f"the metric {self.name} returned {value!r}, not one finite number"
        return float(number), ""

    def check(self, task: Task) -> None:
        """Call the function once on random logits and synthetic targets, two of every class.

        So a metric that needs every class passes, and no data is read. Raises UserError if it
        does not return one finite number.
        """
        targets = np.repeat(np.arange(task.output_shape()[-1]), 2)
        outputs = np.random.default_rng(0).normal(size=(len(targets), *task.output_shape()))
        value, reason = self.measure(outputs, targets)
        if value is None:
            shape = ", ".join(map(str, ("N", *task.output_shape())))
            raise UserError(
                f"{reason}; it is called as {self.name}(outputs, targets), with numpy arrays of "
                f"logits ({shape}) and of class numbers (N,)"
            )


def figure_of(task: Task) -> Metric | None:
    """Return the figure that a task has besides accuracy, as a metric; None if it has none."""
    return Metric(task.figure, task.measure, of_task=True) if task.figure else None


def find_metric(metric: str | Function | None, allow_code: Collection[Path]) -> Metric | None:
    """Return the metric of a function, or import that of `FILE.py:NAME`; None for None.

    Raises UserError if the file is missing, not in `allow_code` or has no such function.
    """
    if metric is None:
        return None
    if not isinstance(metric, str):
        return Metric(getattr(metric, "__name__", type(metric).__name__), metric)
    place, _, name = metric.rpartition(":")
    if not place.endswith(".py") or not name.isidentifier():
        raise UserError(f"metric must be FILE.py:NAME, such as 'mine.py:macro_f1', not {metric!r}")
    function = load_function(place, name, "metric", allow_code)
    return Metric(name, function, Path(place).expanduser().resolve())
