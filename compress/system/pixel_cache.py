"""The pixels of image files on disk, so that every image is decoded once for all steps and runs."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable
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
    read and not mapped: mapped pages would count as memory of the process that looks at them.
    """

    def __init__(self, folder: Path, key: str, count: int, shape: tuple[int, int, int]) -> None:
        self.folder, self.key = folder, key
        self.count, self.bytes = count, int(np.prod(shape))
        self.files: tuple[int, int] | None = None
        self.broken = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "files": None}

    def reserve(self, limit: int | None = None) -> str:
        """Reserve room for all images; return why there is none, '' if there is.

        `limit` is how many bytes all sets in the folder may take.

        The file has its length at once and takes its blocks as images come: others that look see
        how much is still to come.
        """
        needed = self.count * self.bytes
        pixels = self.folder / f"{self.key}.pixels"
        try:
            if pixels.exists() and limit is None:
                return ""
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            others = [one for one in self.folder.glob("*.pixels") if one != pixels]
            known = [path.stat() for path in others]
        except OSError as error:
            return str(error)
        to_come = sum(max(0, one.st_size - BLOCK * one.st_blocks) for one in known)
        if limit is not None:
            kept = sum(one.st_size for one in known)
            if needed + kept > limit:
                beside = f", others there {size(kept)}" if kept else ""
                return (
                    f"they take {size(needed)}{beside}, and the pixel cache may take {size(limit)}"
                )
        if pixels.exists() or needed + to_come <= (SHARE if limit is None else MOST) * free:
            self._open()
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
                os.utime(self.folder / f"{self.key}.pixels")  # used now
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
