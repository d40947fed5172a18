"""The store, as a step sees it: what it keeps beside its own result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.benchmark.store.store import Entry, Store

MADE = "made"


class StoredStepCache:
    """A store that remembers what is kept only until the step has its result.

    `owner` is the key of the step's result, which this process has claimed. What was made before
    `since` (seconds of the epoch) is computed anew: that is a fresh run.
    """

    def __init__(self, store: Store, owner: str, since: float = 0.0) -> None:
        self.store, self.owner, self.since = store, owner, since
        self.temporary: set[str] = set()

    def get(self, key: str, temporary: bool = False) -> Entry | None:
        found = self.store.get(key)
        if found is not None and found.about.get(MADE, 0.0) < self.since:
            self.store.drop(key)
            return None
        if temporary and found is not None:
            self.temporary.add(key)
        return found

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], temporary: bool = False
    ) -> Entry:
        made = self.store.put(key, lambda folder: {**fill(folder), MADE: time.time()}, self.owner)
        if temporary:
            self.temporary.add(key)
        return made

    def drop(self, key: str) -> None:
        self.store.drop(key)
        self.temporary.discard(key)

    def clear(self) -> None:
        """Forget what was temporary: the step has its result."""
        for key in sorted(self.temporary):
            with contextlib.suppress(OSError):  # it costs room, and that is all
                self.drop(key)
