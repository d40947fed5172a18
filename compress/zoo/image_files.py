"""Image files: which files of a folder are used, whether they can be read, and their pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from platformdirs import user_cache_dir
from torch import Tensor

from compress.errors import UserError
from compress.system.files import sha256, write_atomic
from compress.system.progress import stage
from compress.tasks.base import Split, Tensors

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that archivers, network disks and operating systems leave behind, in lower case. (Their
files, such as Thumbs.db, are no images by their names.)"""
DECODERS = min(8, os.cpu_count() or 1)
SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that fingerprints cover."""
NAMED = 20
"""Unreadable files that an error names; of more it says how many there are."""
CHUNK = 1024
LEAST = 256
"""The check remembers which files are sound if it has read at least this many."""
MARK = 16
"""Bytes that are remembered for each sound file."""


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or left behind by some system."""
    return name.startswith(".") or name.lower() in SYSTEMS


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without those that are `ignored`."""
    _, names, _ = next(os.walk(folder, onerror=_refuse))
    return sorted(folder / name for name in names if not ignored(name))


def images_below(folder: Path) -> list[Path]:
    """Return the image files anywhere below a folder, sorted, without what is `ignored`."""
    images = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not ignored(name)]
        files = (Path(place, name) for name in names if not ignored(name))
        images += [path for path in files if path.suffix.lower() in SUFFIXES]
    return sorted(images)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot list the folder {error.filename}: {error.strerror}") from error


# --- pixels -------------------------------------------------------------------------------


class ImageFiles(Split):
    """Image files decoded to RGB uint8 of one size, in a few threads, when they are fetched."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], size: tuple[int, int]) -> None:
        self.files = list(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        chosen = [self.files[i] for i in index.tolist()]
        # A pool for each batch costs under a millisecond, and survives forks and copies.
        with ThreadPoolExecutor(DECODERS) as pool:
            images = list(pool.map(partial(decode, size=self.size), chosen))
        pixels = np.stack(images) if images else np.zeros((0, *self.size, 3), np.uint8)
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),), self.labels[index]


def decode(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image as RGB uint8 (H, W, 3): shorter side resized, centre cropped to `size`.

    Raises UserError that names the file if it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(_rgb(image), size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(fitted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}. Repair or remove it") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def sampled(path: Path) -> str:
    """Return a hash of a file's size and bytes; of a large file, of three samples of its bytes.

    A file that cannot be read has a constant instead: `check_images` reports it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size} ".encode())
            if size <= 3 * SAMPLE:
                digest.update(file.read())
            else:
                for begin in (0, (size - SAMPLE) // 2, size - SAMPLE):
                    file.seek(begin)
                    digest.update(file.read(SAMPLE))
    except OSError:
        return "cannot be read"
    return digest.hexdigest()


# --- the check ----------------------------------------------------------------------------


def check_images(*splits: Split | None) -> None:
    """Read every image file of some splits to its end. Raises UserError that names the bad ones.

    Which files are sound is remembered in the user's cache folder, by path, size and times, so the
    next run reads only those that are new or have changed.
    """
    files = [path for split in splits if isinstance(split, ImageFiles) for path in split.files]
    if not files:
        return
    memory = _memory(files)
    known, marks = _remembered(memory), {path: _mark(path) for path in files}
    sound = known.intersection(marks.values())
    bad: dict[Path, str] = {}
    try:
        for path, reason in _faults([path for path in files if marks[path] not in known]):
            if reason:
                bad[path] = reason
            else:
                sound.add(marks[path])
    finally:  # also of a check that was stopped
        if len(sound - known) >= LEAST:
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
                write_atomic(memory, b"".join(sorted(sound)))
    if bad:
        lines = [f"  {path}: {reason}" for path, reason in bad.items()]
        if len(lines) > NAMED:
            lines[NAMED:] = [f"  and {len(bad) - NAMED:,} more"]
        raise UserError(
            f"{len(bad):,} of {len(files):,} image files cannot be read:\n"
            + "\n".join(lines)
            + "\nRepair, replace or remove them, then run again; nothing was computed yet"
        )


def _faults(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every file with its `fault`."""
    if not files:
        return
    with (
        stage("checking image files", len(files), "files") as checked,
        ThreadPoolExecutor(DECODERS) as pool,
    ):
        for begin in range(0, len(files), CHUNK):
            chunk = files[begin : begin + CHUNK]
            for pair in zip(chunk, pool.map(fault, chunk), strict=True):
                checked.advance()
                yield pair


def fault(path: Path) -> str:
    """Return why the image of a file cannot be read; '' if it can."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if not status.st_size:
            return "the file is empty"
        with Image.open(path) as image:
            # Pillow's own verify() does not read a JPEG's data. This reads them to their end, as
            # `decode` does, but makes an image of an eighth of the size of them.
            image.draft("L", (1, 1))
            _rgb(image.crop((0, 0, 1, 1)))
    except UnidentifiedImageError:
        return "it is no image, or in an unknown format"
    except Exception as error:  # readers of damaged files raise almost anything
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""


def _memory(files: Sequence[Path]) -> Path:
    """Return the file in the user's cache that lists which of some image files are sound."""
    place = os.path.commonpath([path.parent.absolute() for path in files])
    name = sha256(os.fsencode(place))[:32]
    return Path(user_cache_dir("compress-models")) / "checked-images" / name


def _remembered(memory: Path) -> set[bytes]:
    try:
        content = memory.read_bytes()
    except OSError:
        return set()
    return {content[start : start + MARK] for start in range(0, len(content), MARK)}


def _mark(path: Path) -> bytes:
    """Return a hash that changes with a file or the reader of images; b'' if the file is gone.

    Whatever else a damaged memory holds is no file's mark, so its files are read again.
    """
    try:
        status = path.stat()
    except OSError:
        return b""
    version = (PIL.__version__, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    content = os.fsencode(path.absolute()) + repr(version).encode()
    return hashlib.blake2b(content, digest_size=MARK).digest()
