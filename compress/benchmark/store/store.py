"""Results on disk, each under a hash of everything that it depends on.

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

from compress.errors import UserError
from compress.model import Builder, Model, load, save
from compress.system.files import digest, fsync_file, fsync_folder, sha256, sha256_file, write_json
from compress.system.pixel_cache import FOLDER, cached_sets, kept_images, remove_set

ENTRY, CLAIMS, DAMAGED, WRITING = "entry.json", "claims", "damaged", ".writing"
MADE = "made"
"""When an entry of a step's cache was written, among the notes about it."""
KEY_LENGTH = 64
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""Errors of file systems without locks."""


@dataclass(frozen=True)
class Entry:
    """A stored result: its folder, and its writer's notes about it (JSON)."""

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


class ObjectStore:
    """A place that fsspec reaches, such as `s3://bucket/runs`, with a local folder as its mirror.

    Entries are copied whole; `entry.json` goes last, so that what has one is complete. Raises
    UserError where fsspec, or its driver, is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise UserError(
                f"the store {url} needs fsspec, which is not installed: "
                f"pip install 'compress-models[cluster]', or name a folder"
            ) from None
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"the store {url} cannot be reached: {error}") from error
        from platformdirs import user_cache_dir

        base = os.environ.get("COMPRESS_MIRROR") or user_cache_dir("compress-models")
        self.root = root.rstrip("/")
        self.mirror = Path(base) / "mirrors" / sha256(url.encode())[:16]

    def has(self, key: str) -> bool:
        return bool(self.files.exists(f"{self.root}/{key}/{ENTRY}"))

    def drop(self, key: str) -> None:
        if self.has(key):
            self.files.rm(f"{self.root}/{key}", recursive=True)

    def fetch(self, key: str, folder: Path) -> None:
        """Copy an entry's files into a folder. Raises OSError if the place does not answer."""
        for path in self.files.ls(f"{self.root}/{key}", detail=False):
            name = str(path).rstrip("/").rpartition("/")[2]
            if name not in ("", ".", ".."):
                self.files.get_file(str(path), str(folder / name))

    def send(self, entry: Entry) -> None:
        """Copy an entry's files to the place, `entry.json` last."""
        self.files.makedirs(f"{self.root}/{entry.key}", exist_ok=True)
        for name in (*sorted(entry.files), ENTRY):
            self.files.put_file(str(entry.folder / name), f"{self.root}/{entry.key}/{name}")


class Store:
    """A folder of entries, or an object store (`s3://...`) with a folder that mirrors it."""

    def __init__(self, place: str | Path) -> None:
        self.remote = ObjectStore(str(place)) if "://" in str(place) else None
        self.folder = self.remote.mirror if self.remote else Path(place).expanduser()
        self._sent: set[str] = set()
        """Keys that the object store is known to have."""

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key, every hash checked; None if it is absent or damaged."""
        entry = self._read(key)
        if self.remote is None:
            return entry
        if entry is not None:
            if key not in self._sent and not self.remote.has(key):
                self.remote.send(entry)  # a run died before it did
            self._sent.add(key)
        elif self.remote.has(key):
            with self._writing(key) as folder:
                self.remote.fetch(key, Path(folder))
                self._place(Path(folder), key)
            entry = self._read(key)
        return entry

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], owner: str | None = None
    ) -> Entry:
        """Store what `fill` writes into a folder, with the notes that it returns (JSON).

        What a dead writer has left is removed when `owner` (by default `key`) is claimed again.
        Raises what `fill` raises, and OSError if the disk is full; then nothing is stored.
        """
        with self._writing(owner or key) as name:
            folder = Path(name)
            about = json.loads(json.dumps(dict(fill(folder))))
            files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
            for file in files:
                fsync_file(folder / file)
            body = {"key": key, "files": files, "about": about}
            write_json(folder / ENTRY, {"sha256": digest(body), "body": body})
            fsync_folder(folder)
            self._place(folder, key)
        entry = Entry(key, self.folder / key, about, files)
        if self.remote is not None:
            self.remote.send(entry)
            self._sent.add(key)
        return entry

    def put_model(self, key: str, model: Model, build: Builder, about: Mapping[str, Any]) -> Entry:
        """Store a step's result. Raises CannotSave for a model that no file can hold."""

        def fill(folder: Path) -> Mapping[str, Any]:
            save(model, folder, build)
            return about

        return self.put(key, fill)

    def drop(self, key: str) -> None:
        """Remove the entry of a key."""
        if (self.folder / key).exists():
            _drop(self.folder / key)
        if self.remote is not None:
            self._sent.discard(key)
            self.remote.drop(key)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Tell other runs on this store that a key is being computed here.

        Yields False, at once, if another run has claimed it; the claim of a run that dies ends.
        """
        place = self.folder / CLAIMS
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = locked(place / key)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = contextlib.nullcontext()  # both compute, and both results are good
        if lock is None:
            yield False
            return
        with lock:
            for left in self.folder.glob(f"{WRITING}-{key}-*"):
                shutil.rmtree(left, ignore_errors=True)  # its writer is dead: we have the claim
            yield True

    def entries(self) -> Iterator[Path]:
        """Yield the folders of all entries, sound or not."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if len(path.name) == KEY_LENGTH and (path / ENTRY).exists():
                    yield path

    def unchecked(self) -> Iterator[Mapping[str, Any]]:
        """Yield the notes about every entry, no hash checked: for estimates only."""
        for path in self.entries():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield json.loads((path / ENTRY).read_text())["body"]["about"]

    def size(self) -> tuple[int, int]:
        """Return the number of entries, and the bytes of everything below the folder."""
        return sum(1 for _ in self.entries()), folder_bytes(self.folder)

    def images(self) -> tuple[int, int]:
        """Return the number of decoded images that are kept, and the bytes of their files."""
        count = sum(map(kept_images, cached_sets(self.folder)))
        return count, folder_bytes(self.folder / FOLDER)

    def clean(
        self, older_than: float | None = None, keep_bytes: int | None = None
    ) -> tuple[int, int]:
        """Remove damaged entries, leftovers of dead runs, and old entries; return count and bytes.

        `older_than` (seconds) removes entries not used for so long; `keep_bytes` removes the
        least recently used until so many bytes are left. An entry that a run is computing or
        reading, and has claimed, is left alone.
        """
        before = folder_bytes(self.folder)
        for left in [*self.folder.glob(f"{WRITING}-*"), *self.folder.glob(f"{DAMAGED}/*")]:
            key = left.name.removeprefix(f"{WRITING}-").rpartition("-")[0]
            with self.claim(key or left.name) as mine:
                if mine:
                    shutil.rmtree(left, ignore_errors=True)
        used = {path: (path / ENTRY).stat().st_mtime for path in self.entries()}
        used |= {path: path.stat().st_mtime for path in cached_sets(self.folder)}
        removed, left_bytes = 0, folder_bytes(self.folder)
        for path in sorted(used, key=lambda path: used[path]):
            old = older_than is not None and time.time() - used[path] > older_than
            if not old and (keep_bytes is None or left_bytes <= keep_bytes):
                continue
            if path.suffix:
                left_bytes -= file_bytes(path)
                remove_set(path)
                removed += 1
                continue
            with self.claim(path.name) as mine:
                if mine:
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
            sound = digest(body) == sealed["sha256"] and body["key"] == key
            sound = sound and all(
                Path(name).name == name and sha256_file(folder / name) == expected
                for name, expected in body["files"].items()
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            sound = False
        if not sound:
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

    def _writing(self, key: str) -> tempfile.TemporaryDirectory[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return _temporary(self.folder, f"{WRITING}-{key}-")

    def _place(self, folder: Path, key: str) -> None:
        folder.chmod(0o755)
        try:
            folder.rename(self.folder / key)
        except OSError:
            if not (self.folder / key / ENTRY).exists():
                raise
            # Another run was faster; what it wrote under this key is as good.
        fsync_folder(self.folder)


class StoredStepCache:
    """The store as a step sees it, for what the step saves beside its own result.

    What is temporary lasts until the step has its result, under the key `owner`, which this process
    has claimed. Entries from before `since` (seconds of the epoch) are computed anew, in a fresh
    run.
    """

    def __init__(self, store: Store, owner: str, since: float = 0.0) -> None:
        self.store, self.owner, self.since = store, owner, since
        self.temporary: set[str] = set()

    def get(self, key: str, temporary: bool = False) -> Entry | None:
        entry = self.store.get(key)
        if entry is not None and entry.about.get(MADE, 0.0) < self.since:
            self.store.drop(key)
            return None
        if temporary and entry is not None:
            self.temporary.add(key)
        return entry

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], temporary: bool = False
    ) -> Entry:
        entry = self.store.put(key, lambda folder: {**fill(folder), MADE: time.time()}, self.owner)
        if temporary:
            self.temporary.add(key)
        return entry

    def drop(self, key: str) -> None:
        self.store.drop(key)
        self.temporary.discard(key)

    def clear(self) -> None:
        """Remove what was temporary: the step has its result."""
        for key in sorted(self.temporary):
            with contextlib.suppress(OSError):  # it costs room, and that is all
                self.drop(key)


def _drop(folder: Path) -> None:
    """Remove an entry so that no reader finds half of it."""
    with (
        contextlib.suppress(OSError),
        _temporary(folder.parent, f"{WRITING}-{folder.name}-") as gone,
    ):
        folder.rename(Path(gone) / "was")


def _temporary(parent: Path, prefix: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True)


def locked(path: Path) -> contextlib.AbstractContextManager[Any] | None:
    """Lock a file until the returned context ends; return None if another process has locked it.

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
                total += file_bytes(Path(place, name))
    return total


def file_bytes(path: Path) -> int:
    """Return the bytes that a file takes; one with holes takes less than its length."""
    found = os.lstat(path)
    return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512)
