"""A cache in memory of folders, for tests of steps that keep something."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    folder: Path
    about: Mapping[str, Any]


class Folder:
    """A cache in a folder; `full` makes it refuse everything, as a full disk does.

    `away` makes it answer nothing, as a store that cannot be reached.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.temporary: set[str] = set()
        self.puts = 0
        self.full = self.away = False

    def get(self, key: str, temporary: bool = False) -> Entry | None:
        if self.away:
            raise OSError(110, "Connection timed out")
        return self.entries.get(key)

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], temporary: bool = False
    ) -> Entry:
        if self.full:
            raise OSError(28, "No space left on device")
        self.puts += 1
        place = self.folder / key
        place.mkdir(parents=True, exist_ok=True)
        about = json.loads(json.dumps(dict(fill(place))))
        self.entries[key] = Entry(place, about)
        if temporary:
            self.temporary.add(key)
        return self.entries[key]

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)
        self.temporary.discard(key)
