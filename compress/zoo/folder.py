"""Folders of image files, decoded item by item and never all in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compress.errors import UserError
from compress.tasks.base import Split, Tensors
from compress.zoo.source import Source

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIZE = (224, 224)
TEST_ONE_IN = 5
DECODERS = min(8, os.cpu_count() or 1)
SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that fingerprints cover."""
BY_SAMPLES = (
    "of large images the fingerprint covers paths, sizes and samples of their bytes, not all"
)

# Files by class name.
Files = Mapping[str, Sequence[Path]]


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


def image_folder(folder: Path, size: tuple[int, int] | None) -> Source:
    """Return `DIR/{train,test}[/val]/CLASS/*` or flat `DIR/CLASS/*` as a source.

    `val` may also be called `validation`; without `test` it is the test split, as in ImageNet.
    In a flat folder the SHA-256 of an image's relative path decides: one in five is for testing,
    whatever is added later. The fingerprint covers the relative paths and what `sampled` covers of
    the files, since hashing all of a large set takes too long. Raises UserError for any other
    layout.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r} to read images from")
    parts, note = _parts(folder)
    classes = tuple(sorted(parts["train"]))
    _check_classes(folder, parts, classes)
    target = size or DEFAULT_SIZE
    splits = {part: _split(files, classes, target) for part, files in parts.items()}
    return Source(
        name=folder.resolve().name,
        classes=classes,
        channels=3,
        size=target,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
        fingerprint=_fingerprint(folder, parts),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment="flip-crop",
        note="; ".join(filter(None, [BY_SAMPLES, note])),
        resize="shorter side to the size, bilinear with antialiasing, then the centre cropped",
    )


def _parts(folder: Path) -> tuple[dict[str, Files], str]:
    if not (folder / "train").is_dir():
        return _flat(folder), "one image in five, drawn by its path, is for testing"
    found = {"train": _files(folder / "train")}
    for name, part in (("test", "test"), ("val", "val"), ("validation", "val")):
        if (folder / name).is_dir():
            found[part] = _files(folder / name)
    if "test" in found:
        return dict(found), ""
    if "val" not in found:
        raise UserError(f"{folder} has a folder 'train' but neither 'test' nor 'val'")
    return {"train": found["train"], "test": found["val"]}, "the source's 'val' is the test split"


def _flat(folder: Path) -> dict[str, Files]:
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for name, files in _files(folder).items():
        for part in parts:
            parts[part][name] = []
        for path in files:
            key = path.relative_to(folder).as_posix()
            draw = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
            parts["test" if draw % TEST_ONE_IN == 0 else "train"][name].append(path)
    return dict(parts)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, sorted; hidden files do not count."""
    found = {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            found[place.name] = sorted(
                path
                for path in place.rglob("*")
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
    return found


def _check_classes(folder: Path, parts: Mapping[str, Files], classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{folder} holds {len(classes)} class folder(s), but at least two are needed: put "
            f"the images into {folder}/train/CLASS/ and {folder}/test/CLASS/"
        )
    for name in classes:
        if not parts["train"][name]:
            raise UserError(f"class {name!r} in {folder} has no training images")
    for part, files in parts.items():
        if strange := sorted(set(files) - set(classes)):
            raise UserError(f"{folder}/{part} has classes that 'train' lacks: {strange[:5]}")


def _split(files: Files, classes: tuple[str, ...], size: tuple[int, int]) -> ImageFiles:
    pairs = [(path, classes.index(name)) for name in sorted(files) for path in files[name]]
    return ImageFiles([path for path, _ in pairs], [label for _, label in pairs], size)


def _fingerprint(folder: Path, parts: Mapping[str, Files]) -> str:
    digest = hashlib.sha256()
    for part in sorted(parts):
        for name in sorted(parts[part]):
            for path in parts[part][name]:
                line = f"{part} {path.relative_to(folder).as_posix()} {sampled(path)}\n"
                digest.update(line.encode())
    return digest.hexdigest()


def sampled(path: Path) -> str:
    """Return a hash of a file's size and bytes; of more than three samples of it, those alone.

    Raises UserError if it cannot be read.
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
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error}. Repair or remove it") from error
    return digest.hexdigest()
