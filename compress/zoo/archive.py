"""Archives of image folders, unpacked into a folder of their own and nowhere else."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock

from compress.errors import UserError
from compress.system.files import fsync_file, fsync_folder, sha256_file
from compress.zoo.folder import split_of
from compress.zoo.image_files import ignored

ZIP = ".zip"
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_RATIO = 200
"""How many times its size an archive may unpack to: images hardly shrink."""
MOST_FILES = 5_000_000
DAMAGE = (
    *(EOFError, RuntimeError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile),
    *(lzma.LZMAError, zlib.error, OSError, ValueError),
)
"""What the archive libraries raise for content that is damaged."""


def unpacked(path: Path, root: Path) -> Path:
    """Return the folder into which an archive is unpacked, below `root`, once for its content.

    What is no archive is returned as it is. Raises UserError for an archive that is damaged, larger
    than the disk takes or out of all proportion, or that names a file outside its folder; then
    nothing is left of it.
    """
    if not (path.is_file() and path.name.lower().endswith((ZIP, *TARS))):
        return path
    place = root / "unpacked"
    target = place / f"{path.name.partition('.')[0]}-{sha256_file(path)[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "unpacked.lock"):
        if not target.is_dir():
            # Under the lock, what lies there is left from a process that died.
            partial = place / ".unpacking"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                _extract(path, partial)
                _flush(partial)
                partial.rename(target)
                fsync_folder(place)
            except DAMAGE as error:
                raise UserError(f"the archive {path} is refused: {error}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return _inner(target)


def _extract(path: Path, folder: Path) -> None:
    if path.name.lower().endswith(ZIP):
        with zipfile.ZipFile(path) as zipped:
            entries = zipped.infolist()
            _check_entries(path, folder, ((entry.filename, entry.file_size) for entry in entries))
            zipped.extractall(folder)  # a symbolic link comes out as a small file
        return
    with tarfile.open(path) as tar:
        _check_entries(path, folder, map(_name_and_size, tar))
        tar.extractall(folder, filter="data")
        # A compressed stream has its checksum at its very end, behind what tar reads.
        assert tar.fileobj is not None, "it was opened by its name"
        while tar.fileobj.read(1 << 20):
            pass


def _name_and_size(member: tarfile.TarInfo) -> tuple[str, int]:
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{member.name!r} is no file or folder")
    return member.name, member.size


def _check_entries(path: Path, folder: Path, entries: Iterable[tuple[str, int]]) -> None:
    """Raise ValueError as soon as names or sizes go too far: a tar is unpacked as it is read."""
    most, free = MOST_RATIO * max(path.stat().st_size, 1 << 20), shutil.disk_usage(folder).free
    total = 0
    for number, (name, size) in enumerate(entries, 1):
        pure, windows = PurePosixPath(name), PureWindowsPath(name)
        outside = pure.is_absolute() or windows.drive or windows.root
        if outside or ".." in {*pure.parts, *windows.parts}:
            raise ValueError(f"it names a file outside its folder, {name!r}")
        total += size
        if number > MOST_FILES or total > most:
            raise ValueError(f"it claims {number} files of {total} bytes, out of all proportion")
        if total > free:
            raise ValueError(f"it needs {total} bytes, and the disk has only {free} left")


def _flush(folder: Path) -> None:
    """Have everything below a folder written: its name will say that it is complete."""
    for place, _, names in os.walk(folder):
        for name in names:
            fsync_file(Path(place, name))
        fsync_folder(Path(place))


def _inner(folder: Path) -> Path:
    """Return the folder itself, or the one that is all it holds."""
    inside = [path for path in folder.iterdir() if not ignored(path.name)]
    wraps = len(inside) == 1 and inside[0].is_dir() and split_of(inside[0].name) is None
    return inside[0] if wraps else folder
