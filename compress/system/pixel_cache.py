"""The pixels of image files on disk, so that every image is decoded once for all steps and runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.system.amounts import size

FOLDER = "images"
"""Below a store's folder."""
SHARE, MOST = 0.5, 0.9
"""Of the disk's free room that the pixels of all splits may take that are not yet on it: without a
limit of the user's, and with one."""
BLOCK = 512
"""Bytes in which the system counts what a file takes."""
SUM = 4
"""Bytes of a checksum."""


class PixelCache:
    """One file of uint8 images of one shape, filled as they are decoded, and one of checksums.

    An image counts if its checksum is right: it covers the pixels and a mark of the image file.
    So what a crash left half written, a changed file, and damage are decoded again. The files are
    read and not mapped: mapped pages would count as memory of the process that looks at them. While
    they are open they are locked, shared by all who use them, so that others know.
    """

    def __init__(self, folder: Path, key: str, count: int, shape: tuple[int, int, int]) -> None:
        self.folder, self.key = folder, key
        self.count, self.bytes = count, int(np.prod(shape))
        self.path = folder / f"{key}.pixels"
        self.files: tuple[int, int] | None = None
        self.broken = False

    def __del__(self) -> None:
        for file in self.files or ():
            with contextlib.suppress(OSError):
                os.close(file)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "files": None}

    def reserve(self, limit: int | None = None) -> str:
        """Reserve room for all images; return why there is none, '' if there is.

        `limit` is how many bytes all sets in the folder may take. Sets that nobody uses now are
        removed for it, the least recently used first, if that is enough.

        The file has its length at once and takes its blocks as images come: others that look see
        how much is still to come.
        """
        try:
            if not self.hold() or limit is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                others = {one: one.stat() for one in self.folder.glob("*.pixels")}
                others.pop(self.path, None)
                free = shutil.disk_usage(self.folder).free
                if reason := self._make_room(others, free, limit):
                    return reason
        except OSError as error:
            return str(error)
        self._open()
        return ""

    def hold(self) -> bool:
        """Open the set if it is there, so that nobody removes it for another; whether it is."""
        there = self.path.exists()
        if there:
            self._open()
        return there

    def _make_room(
        self, others: Mapping[Path, os.stat_result], free: int, limit: int | None
    ) -> str:
        """Remove as few other sets as it takes; return why there is no room all the same."""
        reason = self._lack(others, free, limit)
        if not reason:
            return ""
        left, removed = dict(others), list[Path]()
        for path in sorted(filter(_unused, others), key=lambda path: others[path].st_mtime):
            removed.append(path)
            free += BLOCK * left.pop(path).st_blocks
            if not self._lack(left, free, limit):
                gone = [_unused(one, remove=True) for one in removed]
                return "" if all(gone) else reason
        return reason

    def _lack(self, others: Mapping[Path, os.stat_result], free: int, limit: int | None) -> str:
        """Return why there is no room beside other sets; '' if there is."""
        needed = self.count * self.bytes
        kept = sum(one.st_size for one in others.values())
        if limit is not None and needed + kept > limit:
            beside = f", others there {size(kept)}" if kept else ""
            return f"they take {size(needed)}{beside}, and the pixel cache may take {size(limit)}"
        to_come = sum(max(0, one.st_size - BLOCK * one.st_blocks) for one in others.values())
        share = SHARE if limit is None else MOST
        if self.path.exists() or needed + to_come <= share * free:
            return ""
        beside = f", others there have {size(to_come)} to come" if to_come else ""
        return f"they take {size(needed)}{beside}, and {size(free)} is free there"

    def has(self, number: int) -> bool:
        """Whether an image was kept, be it sound or not, which only reading it shows."""
        files = self._open()
        try:
            return files is not None and any(os.pread(files[1], SUM, number * SUM))
        except OSError:
            return False

    def read(self, number: int, mark: bytes, into: np.ndarray) -> bool:
        """Put an image's pixels into an array (contiguous); return False if they are not there."""
        files = self._open()
        if files is None or not mark:
            return False
        try:
            known = os.pread(files[1], SUM, number * SUM)
            got = os.preadv(files[0], [_bytes(into)], number * self.bytes)
        except OSError:
            return False
        return got == self.bytes and known == _sum(mark, into)

    def write(self, number: int, mark: bytes, pixels: np.ndarray) -> None:
        """Keep an image's pixels (contiguous). A full disk ends that, and costs time alone."""
        files = self._open()
        if files is None or not mark:
            return
        try:
            os.pwrite(files[0], _bytes(pixels), number * self.bytes)
            os.pwrite(files[1], _sum(mark, pixels), number * SUM)
        except OSError:
            self.broken = True

    def _open(self) -> tuple[int, int] | None:
        """Return the open files of pixels and of checksums; None where they cannot be had."""
        if self.files is None and not self.broken:
            opened = []
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, length in (("pixels", self.bytes), ("sums", SUM)):
                    path = self.folder / f"{self.key}.{name}"
                    opened.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
                    if os.fstat(opened[-1]).st_size < self.count * length:
                        os.ftruncate(opened[-1], self.count * length)
                _lock(opened[0], shared=True)
                os.utime(self.path)  # used now
                self.files = (opened[0], opened[1])
            except OSError:
                self.broken = True
                for file in opened:
                    os.close(file)
        return self.files


def _bytes(pixels: np.ndarray) -> memoryview:
    return pixels.reshape(-1).data


def _sum(mark: bytes, pixels: np.ndarray) -> bytes:
    # Never zero, which is what the file holds for images that are not there.
    value = zlib.crc32(_bytes(pixels), zlib.crc32(mark))
    return (value or 1).to_bytes(SUM, "little")


def _lock(file: int, shared: bool) -> bool:
    """Lock an open file until it is closed; False if others have it open and it is not shared.

    Where a file system has no locks nobody knows of others: who reads a removed set reads on.
    """
    import fcntl  # which only systems have that can keep pixels

    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _unused(pixels: Path, remove: bool = False) -> bool:
    """Whether nobody has a set open, be it another machine; where asked, `remove` it then."""
    try:
        file = os.open(pixels, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        unused = _lock(file, shared=False)
        if unused and remove:
            remove_set(pixels)
        return unused
    finally:
        os.close(file)


def cached_sets(folder: Path) -> Iterable[Path]:
    """Return the files of pixels below a store's folder, each beside its `.sums`."""
    return sorted((folder / FOLDER).glob("*.pixels"))


def kept_images(pixels: Path) -> int:
    """Return how many images a file of pixels holds."""
    try:
        return int(np.count_nonzero(np.fromfile(pixels.with_suffix(".sums"), np.uint32)))
    except OSError:
        return 0


def remove_set(pixels: Path) -> None:
    """Remove a file of pixels and its checksums; who reads them reads on."""
    pixels.unlink(missing_ok=True)
    pixels.with_suffix(".sums").unlink(missing_ok=True)
