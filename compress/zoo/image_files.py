"""Image files: which of those in a folder count, whether they can be read, and their pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from compress.errors import UserError
from compress.system.files import sha256, write_atomic
from compress.system.progress import stage
from compress.tasks.base import Split, Tensors

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that archivers, network disks and operating systems leave behind, in lower case. (Their
files, such as Thumbs.db, are no images by their names.)"""
DECODERS = min(8, os.cpu_count() or 1)
SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that fingerprints cover."""
NAMED = 20
"""Files that cannot be read which an error names; of more it says how many there are."""
CHUNK = 1024
LEAST = 256
"""Files that must have been read for the check to remember that they are sound."""
MARK = 16
"""Bytes of what is remembered of a sound file."""


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden, or left by some system."""
    return name.startswith(".") or name.lower() in SYSTEMS


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, but for what is `ignored`."""
    _, names, _ = next(os.walk(folder, onerror=_refuse))
    return sorted(folder / name for name in names if not ignored(name))


def images_below(folder: Path) -> list[Path]:
    """Return the image files anywhere below a folder, sorted; at no level what is `ignored`."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not ignored(name)]
        images = (Path(place, name) for name in names if not ignored(name))
        found += [path for path in images if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot look into the folder {error.filename}: {error.strerror}") from error


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
            images = list(pool.map(self._decode, chosen))
        pixels = np.stack(images) if images else np.zeros((0, *self.size, 3), np.uint8)
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),), self.labels[index]

    def _decode(self, path: Path) -> np.ndarray:
        return decode(path, self.size)


def decode(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image as RGB uint8 (H, W, 3): shorter side resized, centre cropped to `size`.

    Raises UserError that names the file if it is missing or damaged.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(_rgb(image), size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(fitted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}. Repair or remove it") from error


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def sampled(path: Path) -> str:
    """Return a hash of a file's size and bytes; of more than three samples of it, those alone.

    Of a file that cannot be read it covers that alone: `check_images` tells of it.
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

    What was found sound is remembered in the user's cache folder, by path, size and times, so the
    next run reads only what is new or has changed.
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
        raise UserError(_refusal(bad, len(files)))


def _faults(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every file with its `fault`."""
    if not files:
        return
    with (
        stage("checking image files", len(files), "files") as checked,
        ThreadPoolExecutor(DECODERS) as pool,
    ):
        for begin in range(0, len(files), CHUNK):
            some = files[begin : begin + CHUNK]
            for pair in zip(some, pool.map(fault, some), strict=True):
                checked.advance()
                yield pair


def _refusal(bad: Mapping[Path, str], count: int) -> str:
    lines = [f"  {path}: {reason}" for path, reason in list(bad.items())[:NAMED]]
    more = [f"  and {len(bad) - NAMED:,} more"] if len(bad) > NAMED else []
    return "\n".join(
        [
            f"{len(bad):,} of {count:,} image files cannot be read:",
            *lines,
            *more,
            "Repair, replace or remove them, then run again; nothing was computed yet",
        ]
    )


def fault(path: Path) -> str:
    """Return why the image of a file cannot be read; '' if it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "it is no regular file"
        if not found.st_size:
            return "the file is empty"
        with Image.open(path) as image:
            # Pillow's own verify() does not read a JPEG's data. This reads them to their end, as
            # `decode` does, but makes an image of an eighth of the size of them.
            image.draft("L", (1, 1))
            _rgb(image.crop((0, 0, 1, 1)))
    except UnidentifiedImageError:
        return "it is no image, or of a kind that is not known"
    except Exception as error:  # readers of damaged files raise almost anything
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""


def _memory(files: Sequence[Path]) -> Path:
    """Return the file of the user's cache that remembers the sound ones of some image files."""
    from platformdirs import user_cache_dir

    place = os.path.commonpath([path.parent.absolute() for path in files])
    name = sha256(os.fsencode(place))[:32]
    return Path(user_cache_dir("compress-models")) / "checked-images" / name


def _remembered(memory: Path) -> set[bytes]:
    try:
        content = memory.read_bytes()
    except OSError:
        return set()
    return {content[at : at + MARK] for at in range(0, len(content), MARK)}


def _mark(path: Path) -> bytes:
    """Return a hash of what tells that a file is still the one that was read, by whom; b'' if gone.

    Whatever else a damaged memory holds is no file's mark, so its files are read again.
    """
    import PIL

    try:
        found = path.stat()
    except OSError:
        return b""
    told = (PIL.__version__, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    content = os.fsencode(path.absolute()) + repr(told).encode()
    return hashlib.blake2b(content, digest_size=MARK).digest()
