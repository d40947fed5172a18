"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from compress.errors import nearest


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write through a temporary file beside `path`, fsync it, and rename it into place."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file's content so that `target` is the old or the new, never half of it."""
    with open(source, "rb") as reader, replacing(target) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place if nothing is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def nearest_path(path: Path, fits: Callable[[Path], bool]) -> str:
    """Return a further sentence on a path that is not there: which beside it may be meant.

    Of those that `fits` is true of; '' if none has such a name.
    """
    try:
        names = {one.name for one in path.parent.iterdir() if one != path and fits(one)}
    except OSError:  # there is no such folder either
        return ""
    return f". {nearest(path.name, names, lambda name: str(path.with_name(name)))}".rstrip(". ")


def fsync_file(path: Path) -> None:
    """Have a file's content written to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename within a folder survive the loss of power, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON and fsync it, so that a finished row survives a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell() and not _ends_in_newline(file):
            file.write(b"\n")  # a line that a crash left half-written stays a line of its own
        file.write((json.dumps(value, sort_keys=True) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_in_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which may be large."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
