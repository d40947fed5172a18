"""What a step may use besides a model: the context, its log, and the cache of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from compress.errors import UserError
from compress.model import Model
from compress.ranks import ranks
from compress.system.files import digest
from compress.tasks.base import Split, Subset, Task


class StepLog:
    """Append-only rows about a step: notes, curves, per-layer tables, samples, seconds."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows: list[dict[str, Any]] = [] if rows is None else rows

    def row(self, kind: str, **values: Any) -> None:
        self.rows.append({"kind": kind, **values})

    def note(self, text: str) -> None:
        """Add a sentence that a reader of the table must know."""
        self.row("note", text=text)

    @property
    def notes(self) -> list[str]:
        return list(dict.fromkeys(row["text"] for row in self.rows if row["kind"] == "note"))

    @property
    def samples(self) -> int:
        """The number of training samples seen (each pass over an item counts)."""
        return sum(row["samples"] for row in self.rows if row["kind"] == "fit")


@dataclass(frozen=True)
class Transfer:
    """Items to learn from a teacher with, in place of the training data."""

    items: Split
    labelled: bool
    """Whether the targets are classes of the task; else they are all zero and mean nothing."""
    fingerprint: str


class CacheEntry(Protocol):
    """What a cache holds under a key: files in a folder, and JSON about them."""

    @property
    def folder(self) -> Path: ...

    @property
    def about(self) -> Mapping[str, Any]: ...


class StepCache(Protocol):
    """Stores what outlives a step: measured answers, teachers' outputs, states of a training.

    `put` stores what `fill` writes into its argument, a folder, and the JSON that it returns, as a
    whole or not at all; it raises OSError where the disk does not take it. `temporary` entries are
    removed when the step's own result is stored.
    """

    def get(self, key: str, temporary: bool = False) -> CacheEntry | None: ...

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], temporary: bool = False
    ) -> CacheEntry | None: ...

    def drop(self, key: str) -> None: ...


@dataclass(frozen=True)
class StepContext:
    """What a step may use. There is no test data here, so nothing can leak by mistake."""

    task: Task
    train: Split | None = None
    validation: Split | None = None
    calibration: Split | None = None
    teacher: Model | None = None
    """The baseline: the model that the table's differences refer to."""
    models: Mapping[str, Model] = field(default_factory=dict)
    """Trained models by name, as teachers."""
    build: Callable[[str], Model] | None = None
    """Makes a fresh, untrained model of a name (a student), for this task."""
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    """Transfer sets by the name of their data source."""
    origin: Model | None = None
    enters: Model | None = None
    """In a check: a model with the layers of the one that enters the step, where they are known."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    tune: bool = False
    """Whether a long training may measure in which precision and layout it runs fastest."""
    cache: StepCache | None = None
    scope: str = ""
    """Names, for the cache, what this step depends on."""
    setting: str = ""
    """Names, for the cache, what every step of a run depends on: data, task, code, threads."""
    code: str = ""
    """Names, for the cache, the code alone."""
    seed: int = 0
    position: int = 0
    """How many steps of the chain come before: `run` derives a step's own seed from both."""
    progress: bool = False
    log: StepLog = field(default_factory=StepLog)

    def has(self, need: str) -> bool:
        present = self.train if need == "labels" else getattr(self, need)
        return present is not None and not (isinstance(present, Split) and len(present) == 0)

    def calibration_items(self, count: int) -> Split:
        """Return the first `count` calibration items; the log says so where there are fewer."""
        assert self.calibration is not None, "run() has checked needs"
        found = min(count, len(self.calibration))
        if found < count:
            self.log.note(f"calibrated on {found} of {count} items: there are no more")
        return Subset(self.calibration, torch.arange(found))

    def cached(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Any:
        """Return the answer to a measured question: the cache's, or a new one, which it stores.

        A measured choice is an input of a step: given the same answers, equal seeds give equal
        weights.
        """
        return ranks().agreed(lambda: self._cached(key, measure))

    def _cached(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Any:
        name = digest({"question": dict(key), "code": self.code})
        entry = None if self.cache is None else self.cache.get(name)
        if entry is not None:
            return entry.about["answer"]
        answer = dict(measure())
        if self.cache is not None:
            with contextlib.suppress(OSError):  # a full disk; the answer is known all the same
                self.cache.put(name, lambda _: {"answer": answer})
                # Another process may have been faster: then its answer holds for both.
                entry = self.cache.get(name)
        return answer if entry is None else entry.about["answer"]

    def student(self, name: str) -> Model:
        if self.build is None:
            raise UserError(f"this context cannot build the student {name!r}")
        return self.build(name)
