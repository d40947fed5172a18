"""An object store as the place of results, through fsspec: `s3://bucket/runs`, `gs://...`.

Entries are copied whole; `entry.json` goes last, so that what has one is complete.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.system.files import sha256

ENTRY = "entry.json"


class Remote:
    """A place that fsspec reaches, and the local folder through which this machine uses it."""

    def __init__(self, files: Any, root: str, mirror: Path) -> None:
        self.files, self.root, self.mirror = files, root.rstrip("/"), mirror

    def has(self, key: str) -> bool:
        return bool(self.files.exists(f"{self.root}/{key}/{ENTRY}"))

    def drop(self, key: str) -> None:
        if self.has(key):
            self.files.rm(f"{self.root}/{key}", recursive=True)

    def fetch(self, key: str, folder: Path) -> None:
        """Copy an entry's files into a folder. Raises OSError if the place does not answer."""
        for found in self.files.ls(f"{self.root}/{key}", detail=False):
            name = str(found).rstrip("/").rpartition("/")[2]
            if name not in ("", ".", ".."):
                self.files.get_file(str(found), str(folder / name))

    def send(self, key: str, folder: Path, names: Sequence[str]) -> None:
        """Copy an entry's files to the place, `entry.json` last."""
        self.files.makedirs(f"{self.root}/{key}", exist_ok=True)
        for name in sorted(names, key=lambda name: name == ENTRY):
            self.files.put_file(str(folder / name), f"{self.root}/{key}/{name}")


def open_remote(url: str) -> Remote:
    """Return the place of a URL. Raises UserError where fsspec, or its driver, is missing."""
    try:
        import fsspec
    except ImportError:
        raise UserError(
            f"the store {url} needs fsspec, which is not installed: "
            f"pip install 'compress-models[cluster]', or name a folder"
        ) from None
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"the store {url} cannot be reached: {error}") from error
    from platformdirs import user_cache_dir

    base = os.environ.get("COMPRESS_MIRROR") or user_cache_dir("compress-models")
    return Remote(files, root, Path(base) / "mirrors" / sha256(url.encode())[:16])
