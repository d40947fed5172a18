"""What was computed, on disk, found by a hash of everything that went into it.

An entry is a folder of files and an `entry.json` that lists their hashes. It appears whole, by a
rename, and is believed only if every hash is right; a damaged one is set aside. So chains share
their common beginnings, a run that was stopped goes on where it was, and two runs can use one
store at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.benchmark.store.object_store import Remote, open_remote
from compress.errors import UserError
from compress.model import Builder, Model, load, save
from compress.system.files import digest, fsync_file, fsync_folder, sha256_file, write_json

ENTRY, CLAIMS, DAMAGED, WRITING = "entry.json", "claims", "damaged", ".writing"
KEY_LENGTH = 64
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system answers that has no locks."""


@dataclass(frozen=True)
class Entry:
    """What lies under a key: its folder, and what was said of it when it was written (JSON)."""

    key: str
    folder: Path
    about: Mapping[str, Any]
    files: Mapping[str, str]
    """File name -> SHA-256."""

    @property
    def step_log(self) -> list[dict[str, Any]]:
        return list(self.about.get("step_log", []))

    def model(self, build: Builder) -> Model:
        """Rebuild the model of a step's result. Raises UserError if that is not possible."""
        model = load(self.folder, build)
        if "model.onnx" in self.files:
            model = replace(model, onnx=(self.folder / "model.onnx").read_bytes())
        return model


class Store:
    """A folder of entries, or an object store (`s3://...`) with a folder that mirrors it."""

    def __init__(self, place: str | Path) -> None:
        self.remote: Remote | None = None
        self._sent: set[str] = set()
        """Keys that the object store is known to have."""
        if "://" in str(place):
            self.remote = open_remote(str(place))
            place = self.remote.mirror
        self.folder = Path(place).expanduser()

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key, every hash checked; None if it is absent or damaged."""
        entry = self._read(key)
        if entry is not None and self.remote is not None:
            self._send_again(entry)
        if entry is None and self.remote is not None and self.remote.has(key):
            with self._writing(key) as made:
                self.remote.fetch(key, made)
                self._place(made, key)
            entry = self._read(key)
        return entry

    def _send_again(self, entry: Entry) -> None:
        """Send an entry of the mirror that the object store lacks: a run died before it did."""
        if self.remote is None or entry.key in self._sent:
            return
        if not self.remote.has(entry.key):
            self.remote.send(entry.key, entry.folder, [*entry.files, ENTRY])
        self._sent.add(entry.key)

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], owner: str | None = None
    ) -> Entry:
        """Keep what `fill` writes into a folder and what it returns about it (JSON).

        What a dead writer has left goes when `owner` (by default `key`) is claimed again.
        Raises what `fill` raises, and OSError if the disk does not take it; then nothing is kept.
        """
        with self._writing(owner or key) as made:
            about = json.loads(json.dumps(dict(fill(made))))
            files = {path.name: sha256_file(path) for path in sorted(made.iterdir())}
            for name in files:
                fsync_file(made / name)
            body = {"key": key, "files": files, "about": about}
            write_json(made / ENTRY, {"sha256": digest(body), "body": body})
            fsync_folder(made)
            self._place(made, key)
        if self.remote is not None:
            self.remote.send(key, self.folder / key, [*files, ENTRY])
            self._sent.add(key)
        return Entry(key, self.folder / key, about, files)

    def put_model(self, key: str, model: Model, build: Builder, about: Mapping[str, Any]) -> Entry:
        """Keep a step's result. Raises CannotSave for a model that no file can hold."""

        def fill(folder: Path) -> Mapping[str, Any]:
            save(model, folder, build)
            return about

        return self.put(key, fill)

    def drop(self, key: str) -> None:
        """Forget what lies under a key."""
        if (self.folder / key).exists():
            _drop(self.folder / key)
        if self.remote is not None:
            self._sent.discard(key)
            self.remote.drop(key)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Say to other runs on this store that a key is being computed here.

        Yields False, at once, if another run has said so; a run that dies says nothing any more.
        """
        place = self.folder / CLAIMS
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = locked(place / key)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = contextlib.nullcontext()  # both compute, and both results are good
        with lock or contextlib.nullcontext():
            if lock is not None:
                for left in self.folder.glob(f"{WRITING}-{key}-*"):
                    shutil.rmtree(left, ignore_errors=True)  # its writer is dead: we have the claim
            yield lock is not None

    def entries(self) -> Iterator[Path]:
        """Yield the folders of all entries, sound or not."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if len(path.name) == KEY_LENGTH and (path / ENTRY).exists():
                    yield path

    def told(self) -> Iterator[Mapping[str, Any]]:
        """Yield what is said about every entry, unchecked: for estimates only."""
        for path in self.entries():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield json.loads((path / ENTRY).read_text())["body"]["about"]

    def size(self) -> tuple[int, int]:
        """Return the number of entries, and the bytes of everything below the folder."""
        return sum(1 for _ in self.entries()), folder_bytes(self.folder)

    def clean(
        self, older_than: float | None = None, keep_bytes: int | None = None
    ) -> tuple[int, int]:
        """Remove damaged entries, leftovers of dead runs, and old entries; say how many and bytes.

        `older_than` (seconds) removes entries not used for so long; `keep_bytes` removes the
        least recently used until so many bytes are left. An entry that a run is computing or
        reading is left alone, as far as its claim tells.
        """
        before = folder_bytes(self.folder)
        removed = 0
        for left in [*self.folder.glob(f"{WRITING}-*"), *self.folder.glob(f"{DAMAGED}/*")]:
            key = left.name.removeprefix(f"{WRITING}-").rpartition("-")[0]
            with self.claim(key or left.name) as mine:
                if mine:
                    shutil.rmtree(left, ignore_errors=True)
        by_age = sorted(self.entries(), key=lambda path: (path / ENTRY).stat().st_mtime)
        now, left_bytes = time.time(), folder_bytes(self.folder)
        for path in by_age:
            old = older_than is not None and now - (path / ENTRY).stat().st_mtime > older_than
            much = keep_bytes is not None and left_bytes > keep_bytes
            if not old and not much:
                continue
            with self.claim(path.name) as mine:
                if not mine:
                    continue
                left_bytes -= folder_bytes(path)
                _drop(path)
                removed += 1
        return removed, before - folder_bytes(self.folder)

    def _read(self, key: str) -> Entry | None:
        folder = self.folder / key
        if not folder.is_dir():
            return None
        try:
            sealed = json.loads((folder / ENTRY).read_bytes())
            body = sealed["body"]
            if digest(body) != sealed["sha256"] or body["key"] != key:
                raise UserError(f"{ENTRY} is not what was written")
            for name, expected in body["files"].items():
                if Path(name).name != name or sha256_file(folder / name) != expected:
                    raise UserError(f"{name} is not what was written")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._set_aside(folder)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)  # used now: `clean` removes the least recently used
        return Entry(key, folder, body["about"], body["files"])

    def _set_aside(self, folder: Path) -> None:
        """Move a damaged entry away: it is computed again, and the damage can be looked at."""
        place = self.folder / DAMAGED
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another run was faster
            folder.rename(Path(tempfile.mkdtemp(dir=place, prefix=f"{folder.name[:12]}-")) / "was")

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{WRITING}-{key}-"))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _place(self, made: Path, key: str) -> None:
        made.chmod(0o755)
        try:
            made.rename(self.folder / key)
        except OSError:
            if not (self.folder / key / ENTRY).exists():
                raise
            # Another run was faster; what it wrote under this key is as good.
        fsync_folder(self.folder)


def _drop(folder: Path) -> None:
    """Remove an entry so that no reader finds half of it."""
    with contextlib.suppress(OSError):
        gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{WRITING}-{folder.name}-"))
        folder.rename(gone / "was")
        shutil.rmtree(gone, ignore_errors=True)


def locked(path: Path) -> contextlib.AbstractContextManager[Any] | None:
    """Lock a file until what is returned is left; None if somebody else has locked it.

    Raises OSError, with one of `NO_LOCKS`, on a file system that has no locks.
    """
    try:
        # Not a marker in place of the system's lock: that would outlive a run that is killed.
        return FileLock(path, blocking=False, fallback_to_soft=False).acquire()
    except Timeout:
        return None


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
