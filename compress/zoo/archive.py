"""Archives of image folders, unpacked into a folder of their own and nowhere else."""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from compress.errors import UserError
from compress.system.files import fsync_file, fsync_folder, sha256_file
from compress.zoo.image_files import ignored

ZIPS = (".zip",)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_RATIO = 200
"""How many times its size an archive may unpack to: images hardly shrink."""
MOST_FILES = 5_000_000
DAMAGE = (
    *(EOFError, RuntimeError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile),
    *(lzma.LZMAError, zlib.error),
)
"""What the archive libraries raise for content that is damaged, besides OSError."""
LEFT = 86_400.0
"""Seconds after which what an unpacking has left is nobody's."""


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith((*ZIPS, *TARS))


def unpacked(path: Path, below: Path) -> Path:
    """Unpack an archive into a folder below `below`, once for its content; return the folder.

    Raises UserError for an archive that is damaged, larger than the disk takes or out of all
    proportion, or that names a file outside its folder; then nothing is left of it.
    """
    target = below / "unpacked" / f"{path.name.partition('.')[0]}-{sha256_file(path)[:16]}"
    if target.is_dir():
        return _inner(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _forget_leftovers(target.parent)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        opener = _zip if path.name.lower().endswith(ZIPS) else _tar
        opener(path, made)
        made.chmod(0o755)
        _to_disk(made)
        made.rename(target)
        fsync_folder(target.parent)
    except (OSError, ValueError, *DAMAGE) as error:
        if not target.is_dir():  # else another process has just unpacked it
            raise UserError(f"the archive {path} is refused: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return _inner(target)


def _forget_leftovers(place: Path) -> None:
    """Remove what processes that died while they unpacked have left."""
    for left in place.glob(".unpacking-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT:
                shutil.rmtree(left, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Have everything below a folder written: its name will say that it is complete."""
    for place, _, names in os.walk(folder):
        for name in names:
            fsync_file(Path(place, name))
        fsync_folder(Path(place))


def _inner(folder: Path) -> Path:
    """Return the folder itself, or the one that is all it holds."""
    inside = [path for path in folder.iterdir() if not ignored(path.name)]
    wraps = len(inside) == 1 and inside[0].is_dir() and inside[0].name not in ("train", "test")
    return inside[0] if wraps else folder


def _check_size(path: Path, names: int, total: int, below: Path) -> None:
    if names > MOST_FILES or total > MOST_RATIO * max(path.stat().st_size, 1 << 20):
        raise RuntimeError(f"it claims {names} files of {total} bytes, out of all proportion")
    if total > shutil.disk_usage(below).free:
        raise RuntimeError(f"it needs {total} bytes, and the disk of {below.parent} has fewer")


def _check_name(name: str) -> None:
    pure, windows = PurePosixPath(name), PureWindowsPath(name)
    if pure.is_absolute() or windows.drive or windows.root or ".." in {*pure.parts, *windows.parts}:
        raise RuntimeError(f"it names a file outside its folder, {name!r}")


def _zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_size(path, len(entries), sum(entry.file_size for entry in entries), folder)
        for entry in entries:
            _check_name(entry.filename)
        archive.extractall(folder)  # a symbolic link comes out as a small file


def _tar(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        names = total = 0
        for member in archive:
            names, total = names + 1, total + member.size
            _check_size(path, names, total, folder)
            _check_name(member.name)
            if not (member.isfile() or member.isdir()):
                raise RuntimeError(f"{member.name!r} is no file or folder")
        archive.extractall(folder, filter="data")
        # A compressed stream has its checksum at its very end, behind what tar reads.
        assert archive.fileobj is not None, "it was opened by its name"
        while archive.fileobj.read(1 << 20):
            pass
