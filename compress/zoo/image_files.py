"""Image files: which files of a folder are used, whether they can be read, and their pixels."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from compress.errors import UserError, clause
from compress.system.files import digest, sha256, write_atomic
from compress.system.pixel_cache import FOLDER, PixelCache
from compress.system.progress import stage
from compress.tasks.base import Data, Split, Subset, Tensors, spaced
from compress.tasks.preprocessing import LEVELS, Fit

NO_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Pillow's formats of documents, drawings, films and measurements, some of which it only names."""
BESIDE_IMAGES = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html"),
    *(".db", ".ini", ".md5", ".sha256"),
}
"""Suffixes of labels, captions, checksums and what else usually lies beside images."""
SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that archivers, network disks and operating systems leave behind, in lower case. (Their
files, such as Thumbs.db, are no images by their names.)"""
DECODERS = min(8, os.cpu_count() or 1)
AHEAD = max(1, DECODERS - 1)
"""Threads that decode in the background: a core is left to whoever waits for the images."""
SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that fingerprints cover."""
NAMED = 20
"""Unreadable files that an error names; of more it says how many there are."""
CHUNK = 1024
LEAST = 256
"""The check remembers which files are sound if it has read at least this many."""
DEEP, TWELVE = (1 << 16) - 1, 1 << 12
FAINT = 16
"""Levels of 256 that 12 of 16 bits come to."""
ORIENTATION = 0x0112
"""EXIF's tag."""
LOOKED_AT = 256
REMARKS = {
    "turned": "are stored turned, as their EXIF says, and are read as they are stored, as "
    "torchvision and timm do (exif = true turns them)",
    "frames": "are animated, and their first frame is read",
    "dark": "have 16 bits and use at most 12 of them, so they are read as nearly black: stretch "
    "them to 16 bits, or save 8",
    "faint": "have floating-point levels that go a little beyond 1, so they count as levels up to "
    "255 and are read as nearly black: scale them to 1 at most, or to 255",
}
MARK = 16
"""Bytes that are remembered for each sound file."""


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or left behind by some system."""
    return name.startswith(".") or name.lower() in SYSTEMS


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without those that are `ignored`."""
    _, names, _ = next(os.walk(folder, onerror=_refuse))
    return sorted(folder / name for name in names if not ignored(name))


def has_images(folder: Path) -> bool:
    """Whether a folder holds image files itself, not in folders below."""
    _, _, names = next(os.walk(folder, onerror=_refuse))
    return any(Path(n).suffix.lower() in suffixes() for n in names if not ignored(n))


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of image files: of what Pillow opens, less `NO_PHOTOS`."""
    registered = Image.registered_extensions()
    formats = (Image.OPEN.keys() | {"MPO"}) - NO_PHOTOS  # MPO is opened as JPEG
    return frozenset(suffix for suffix, kind in registered.items() if kind in formats)


def images_below(folder: Path) -> list[Path]:
    """Return the image files anywhere below a folder, sorted, without what is `ignored`."""
    return files_below(folder)[0]


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files below a folder, and those of other kinds, sorted.

    Without what is `ignored`, and of the others without what is usual `BESIDE_IMAGES`. Links to
    folders are followed, but each folder is read once, by its own path if that lies there, and a
    link to a folder around this one is not followed.
    """
    images: list[Path] = []
    others: list[Path] = []
    around = {*folder.resolve().parents, *folder.absolute().parents}
    seen = {_identity(place) for place in around}
    own, links = [folder], list[Path]()
    while own or links:
        place = own.pop() if own else links.pop(0)
        if (identity := _identity(place)) in seen:
            continue
        seen.add(identity)
        _, folders, names = next(os.walk(place, onerror=_refuse))
        inside = [place / name for name in sorted(folders) if not ignored(name)]
        links += [path for path in inside if path.is_symlink()]
        own += [path for path in inside if not path.is_symlink()]
        for path in (place / name for name in names if not ignored(name)):
            if (suffix := path.suffix.lower()) in suffixes():
                images.append(path)
            elif suffix not in BESIDE_IMAGES:
                others.append(path)
    return sorted(images), sorted(others)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        _refuse(error)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot list the folder {error.filename}: {error.strerror}") from error


# --- pixels -------------------------------------------------------------------------------


class ImageFiles(Split):
    """Image files decoded to uint8 of one size, in a few threads, when they are fetched."""

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], fit: Fit, channels: int = 3
    ) -> None:
        self.files = list(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.fit, self.channels = fit, channels
        self.pixels: PixelCache | None = None
        self.limit: int | None = None
        self.others: dict[Fit, ImageFiles] = {}

    def __len__(self) -> int:
        return len(self.files)

    def remade(self, how: Fit) -> ImageFiles:
        """Return the same files as they are decoded by another spec, once for all who ask.

        Raises UserError for files of another size that this does not resize.
        """
        if how == self.fit:
            return self
        if how not in self.others:
            made = copy.copy(self)
            made.fit, made.pixels, made.others = how, None, {}
            check_sizes(made)
            if self.pixels is not None:
                made.keep_pixels(self.pixels.folder, self.limit)
            self.others[how] = made
        return self.others[how]

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        pixels = np.empty((len(index), *self.fit.size, self.channels), np.uint8)
        # A pool for each batch costs under a millisecond, and survives forks and copies.
        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(self._put, index.tolist(), pixels))
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),), self.labels[index]

    def _put(self, number: int, into: np.ndarray) -> None:
        """Put an image's pixels into an array, those that are kept if there are any."""
        path = self.files[number]
        mark = b"" if self.pixels is None else _mark(path)
        if self.pixels is not None and self.pixels.read(number, mark, into):
            return
        into[:] = decode(path, self.fit, self.channels)
        if self.pixels is not None:
            self.pixels.write(number, mark, into)

    def keep_pixels(self, folder: Path, limit: int | None = None) -> str:
        """Keep decoded pixels below a folder from now on; return why not if there is no room.

        `limit` is in bytes, of all that is kept there.
        """
        if self.pixels is not None and (self.pixels.folder, self.limit) == (folder, limit):
            return ""
        self.limit = limit
        made = self.pixel_set(folder)
        reason = made.reserve(limit)
        self.pixels = None if reason else made
        return reason

    def pixel_set(self, folder: Path) -> PixelCache:
        """Return the place of these files' pixels below a folder."""
        described = [self.fit.to_json(), list(self.fit.size), self.channels, PIL.__version__]
        key = digest([*described, [os.fspath(path.absolute()) for path in self.files]])
        return PixelCache(folder, key, len(self), (*self.fit.size, self.channels))


def keep_pixels(
    data: Data, store: Path, others: Iterable[Split] = (), limit: int | None = None
) -> str:
    """Keep decoded images below a store's folder: of data, and of other splits.

    All that is kept there takes `limit` bytes at most, by default what leaves the disk half of its
    room; for it the sets that nobody uses are removed. Return why that cannot be, '' if it can.
    """
    used: dict[int, ImageFiles] = {}
    for split in (data.train, data.validation, data.calibration, data.test, *others):
        while isinstance(inner := getattr(split, "whole", None), Split):
            split = inner
        if isinstance(split, ImageFiles):
            used[id(split)] = split
    # None of those that are there makes room for another one.
    there = [split.pixel_set(store / FOLDER) for split in used.values()]
    held = [one for one in there if one.hold()]
    reasons: dict[tuple[int, int], str] = {}
    kept, all_of_size = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for split in used.values():
        size = split.fit.size
        all_of_size[size] += len(split)
        if why := split.keep_pixels(store / FOLDER, limit):
            reasons.setdefault(size, why)
        else:
            kept[size] += len(split)
    del held
    return "; ".join(
        f"{all_of_size[size] - kept[size]:,} of {all_of_size[size]:,} images of "
        f"{size[0]}x{size[1]} are decoded anew whenever they are used: {why}"
        for size, why in reasons.items()
    )


@contextlib.contextmanager
def decoding_ahead(split: Split) -> Iterator[None]:
    """Decode images in the background meanwhile, where they are kept, from the first one on.

    What cannot be decoded is for whoever reads it to report.
    """
    index = torch.arange(len(split))
    while isinstance(split, Subset):
        index, split = split.index[index], split.whole
    if not isinstance(split, ImageFiles) or split.pixels is None:
        yield
        return
    images, pixels, stopped = split, split.pixels, threading.Event()

    def decode_some(numbers: list[int]) -> None:
        into = np.empty((*images.fit.size, images.channels), np.uint8)
        for number in numbers:
            if stopped.is_set():
                return
            if not pixels.has(number):
                with contextlib.suppress(UserError):
                    images._put(number, into)

    with ThreadPoolExecutor(AHEAD, thread_name_prefix="decoding") as pool:
        for start in range(AHEAD):
            pool.submit(decode_some, index[start::AHEAD].tolist())
        try:
            yield
        finally:
            stopped.set()


def decode(path: Path, fit: Fit, channels: int = 3) -> np.ndarray:
    """Return the image as uint8 of shape (H, W, channels): RGB, or gray.

    Raises UserError that names the file if it is missing or damaged.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened) if fit.exif else opened
            pixels = fit(eight_bits(image).convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = clause(error)
        raise UserError(f"cannot read the image {path}: {reason}. Repair or remove it") from error
    return pixels[:, :, None] if channels == 1 else pixels


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image that Pillow converts to RGB or gray without losing its levels.

    Of 16 bits the upper eight are taken, where Pillow would clip. Floating-point levels of at most
    one are shares of white, else they are levels up to 255. Raises ValueError for others.
    """
    if image.mode == "F":
        shares = np.asarray(image)
        top = shares.max()
        if not (np.isfinite(shares).all() and shares.min() >= 0 and top <= LEVELS):
            raise ValueError(f"its floating-point levels are not from 0 to 1, nor to {LEVELS}")
        return Image.fromarray((shares * (LEVELS if top <= 1 else 1)).round().astype(np.uint8))
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > DEEP:
            raise ValueError("its levels need more than 16 bits")
        deep = image.mode != "I" or levels.max() > LEVELS
        return Image.fromarray((levels >> 8 if deep else levels).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def remarks(*splits: Split | None) -> list[str]:
    """Return what a reader should know of how image files are read, from a sample of each split."""
    looked: dict[Path, Fit] = {}
    for split in splits:
        if isinstance(split, ImageFiles) and len(split):
            numbers = spaced(LOOKED_AT, len(split)).tolist()
            looked |= {split.files[number]: split.fit for number in numbers}
    counts = dict.fromkeys(REMARKS, 0)
    for path, fit in looked.items():
        with contextlib.suppress(Exception), Image.open(path) as image:
            deep = _stored_in_16_bits(image)  # EXIF may only be had by reading all
            # Pillow itself turns a TIFF, whatever is asked for.
            turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) != 1
            counts["turned"] += turned and not fit.exif
            # The further images of an MPO photograph are previews of it, or other views.
            counts["frames"] += image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            if image.mode[0] in "IF":
                top = np.asarray(image).max()
                # Other integers of 8 bits are read as such.
                least = -1 if image.mode.startswith("I;16") else LEVELS
                counts["dark"] += image.mode != "F" and least < top < TWELVE
                counts["faint"] += image.mode == "F" and 1 < top < FAINT
            elif deep:  # alpha apart, which is white where there is an image
                counts["dark"] += np.asarray(image.convert("RGB")).max() <= FAINT
    return [
        f"of {len(looked):,} image files looked at, {count:,} {REMARKS[kind]}"
        for kind, count in counts.items()
        if count
    ]


def _stored_in_16_bits(image: Image.Image) -> bool:
    """Whether an opened image, not yet read, has 16 bits a channel, of which Pillow takes eight."""
    for codec, _, _, how in getattr(image, "tile", ()):
        # How a codec lays out pixels, such as 'RGB;16B'; of a PPM, its largest level.
        if ";16" in str(how) or (codec == "ppm" and how[1] > LEVELS):
            return True
    return False


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

    Those, too, that have another size where images are not to be resized. Which files are sound is
    remembered in the user's cache folder, by path, size and times, so the next run reads only those
    that are new or have changed.
    """
    files = [path for split in splits if isinstance(split, ImageFiles) for path in split.files]
    if bad := _failing(files, fault, "checking image files"):
        raise UserError(
            f"{len(bad):,} of {len(files):,} image files cannot be read:\n{_named(bad)}\n"
            f"Repair, replace or remove them, then run again; nothing was computed yet"
        )
    check_sizes(*splits)


def check_sizes(*splits: Split | None) -> None:
    """Raise UserError that names the image files that lack their size and are not to be resized."""
    by_fit: dict[Fit, list[Path]] = {}
    for split in splits:
        if isinstance(split, ImageFiles) and split.fit.resize == "none":
            by_fit.setdefault(split.fit, []).extend(split.files)
    for fit, files in by_fit.items():
        text = "checking the sizes of image files"
        if bad := _failing(files, partial(_misfit, fit=fit), text, f"{fit.size} {fit.exif}"):
            raise UserError(
                f"{len(bad):,} of {len(files):,} image files have another size, and resize is "
                f"'none':\n{_named(bad)}\n"
                f"Give another resize ('shorter', 'longer' or 'exact'), or replace or remove them, "
                f"then run again; nothing was computed yet"
            )


def _named(bad: Mapping[Path, str]) -> str:
    lines = [f"  {path}: {reason}" for path, reason in bad.items()]
    if len(lines) > NAMED:
        lines[NAMED:] = [f"  and {len(bad) - NAMED:,} more"]
    return "\n".join(lines)


def _failing(
    files: Sequence[Path], look: Callable[[Path], str], text: str, kind: str = ""
) -> dict[Path, str]:
    """Return the files that do not pass, and why `look` says so; remember those that do.

    Files that have passed a check of some `kind` have passed no other one.
    """
    bad: dict[Path, str] = {}
    if not files:
        return bad
    memory = _memory(files, kind)
    known, marks = _remembered(memory), {path: _mark(path) for path in files}
    sound = known.intersection(marks.values())
    new = [path for path in files if marks[path] not in known]
    try:
        for path, reason in _looked_at(new, look, text):
            if reason:
                bad[path] = reason
            else:
                sound.add(marks[path])
    finally:  # also of a check that was stopped
        if len(sound - known) >= LEAST:
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
                write_atomic(memory, b"".join(sorted(sound)))
    return bad


def _looked_at(
    files: Sequence[Path], look: Callable[[Path], str], text: str
) -> Iterator[tuple[Path, str]]:
    """Yield every file with what `look` says of it."""
    if not files:
        return
    with (
        stage(text, len(files), "files") as checked,
        ThreadPoolExecutor(DECODERS) as pool,
    ):
        for begin in range(0, len(files), CHUNK):
            chunk = files[begin : begin + CHUNK]
            for pair in zip(chunk, pool.map(look, chunk), strict=True):
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
            deep = image.mode[0] in "IF"  # only all of its levels show whether they fit
            eight_bits(image if deep else image.crop((0, 0, 1, 1))).convert("RGB")
    except UnidentifiedImageError:
        return "it is no image, or in an unknown format"
    except Exception as error:  # readers of damaged files raise almost anything
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""


def _misfit(path: Path, fit: Fit) -> str:
    """Return which size an image that is not to be resized has; '' if it has its own."""
    try:
        with Image.open(path) as opened:
            turned = fit.exif and opened.getexif().get(ORIENTATION, 1) != 1
            image = ImageOps.exif_transpose(opened) if turned else opened
            (width, height), (own_height, own_width) = image.size, fit.size
    except Exception as error:  # it was sound just now
        return clause(error)
    if (height, width) == fit.size:
        return ""
    return f"{height}x{width} pixels, not {own_height}x{own_width}"


def _memory(files: Sequence[Path], kind: str) -> Path:
    """Return the file in the user's cache that lists which of some image files passed a check."""
    place = os.path.commonpath([path.parent.absolute() for path in files])
    name = sha256(os.fsencode(place) + kind.encode())[:32]
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
