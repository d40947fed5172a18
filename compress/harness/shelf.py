"""The store, as a step sees it: what it keeps beside its own result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.harness.store import Entry, Store


class StepShelf:
    """A store that remembers what is kept only until the step has its result."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.passing: set[str] = set()

    def get(self, key: str, passing: bool = False) -> Entry | None:
        found = self.store.get(key)
        if passing and found is not None:
            self.passing.add(key)
        return found

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], passing: bool = False
    ) -> Entry:
        made = self.store.put(key, fill)
        if passing:
            self.passing.add(key)
        return made

    def drop(self, key: str) -> None:
        self.store.drop(key)
        self.passing.discard(key)

    def clear(self) -> None:
        """Forget what was passing: the step's own result is kept now."""
        for key in sorted(self.passing):
            self.drop(key)
