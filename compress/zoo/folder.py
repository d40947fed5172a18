"""Folders of image files as a data source: the split and the class of every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.errors import UserError
from compress.system.files import digest, sha256
from compress.zoo.image_files import ImageFiles, folders_in, images_below, sampled
from compress.zoo.source import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIZE = (224, 224)
TEST_ONE_IN = 5
BY_SAMPLES = (
    "of large images the fingerprint covers paths, sizes and samples of their bytes, not all"
)

Files = Mapping[str, Sequence[Path]]
"""Image files by class."""


def image_folder(folder: Path, size: tuple[int, int] | None) -> Source:
    """Return `DIR/{train,test}[/val]/CLASS/*` or flat `DIR/CLASS/*` as a source.

    `val` may also be called `validation`; without `test` it is the test split, as in ImageNet.
    In a flat folder the SHA-256 of an image's relative path decides: one in five is for testing,
    whatever is added later. What is `ignored` is skipped at every level. The fingerprint covers
    the relative paths and what `sampled` covers of the files, since hashing all of a large set
    takes too long. Raises UserError for any other layout.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r} to read images from")
    parts, note = _parts(folder)
    classes = tuple(sorted(parts["train"]))
    _check_classes(folder, parts, classes)
    target = size or DEFAULT_SIZE
    splits = {part: _split(files, classes, target) for part, files in parts.items()}
    training = _fingerprint(folder, {part: parts[part] for part in parts if part != "test"})
    return Source(
        name=folder.resolve().name,
        classes=classes,
        channels=3,
        size=target,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
        fingerprint=digest([training, _fingerprint(folder, {"test": parts["test"]})]),
        training_fingerprint=training,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment="flip-crop",
        note="; ".join(filter(None, [BY_SAMPLES, note])),
        resize="shorter side to the size, bilinear with antialiasing, then the centre cropped",
    )


def _parts(folder: Path) -> tuple[dict[str, Files], str]:
    """Return the image files of each split by class, and a note on how they were split."""
    if not (folder / "train").is_dir():
        return _flat(folder), "one image in five, drawn by its path, is for testing"
    parts: dict[str, Files] = {}
    for name, part in {"train": "train", "test": "test", "val": "val", "validation": "val"}.items():
        if (folder / name).is_dir():
            parts[part] = _by_class(folder / name)
    if "test" in parts:
        return parts, ""
    if "val" not in parts:
        raise UserError(f"{folder} has a folder 'train' but neither 'test' nor 'val'")
    return {"train": parts["train"], "test": parts["val"]}, "the source's 'val' is the test split"


def _flat(folder: Path) -> dict[str, Files]:
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, files in _by_class(folder).items():
        train[name], test[name] = [], []
        for path in files:
            key = path.relative_to(folder).as_posix()
            draw = int(sha256(key.encode())[:8], 16)
            (train if draw % TEST_ONE_IN else test)[name].append(path)
    return {"train": train, "test": test}


def _by_class(folder: Path) -> Files:
    """Return the image files of each class folder, sorted."""
    return {place.name: images_below(place) for place in folders_in(folder)}


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
        if foreign := sorted(set(files) - set(classes)):
            raise UserError(f"{folder}/{part} has classes that 'train' lacks: {foreign[:5]}")


def _split(files: Files, classes: tuple[str, ...], size: tuple[int, int]) -> ImageFiles:
    pairs = [(path, classes.index(name)) for name in sorted(files) for path in files[name]]
    return ImageFiles([path for path, _ in pairs], [label for _, label in pairs], size)


def _fingerprint(folder: Path, parts: Mapping[str, Files]) -> str:
    lines = [
        f"{part} {path.relative_to(folder).as_posix()} {sampled(path)}\n"
        for part in sorted(parts)
        for name in sorted(parts[part])
        for path in parts[part][name]
    ]
    return sha256("".join(lines).encode())
