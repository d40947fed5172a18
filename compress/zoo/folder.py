"""Folders of image files as a data source: the split and the class of every file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.errors import UserError
from compress.system.files import digest, sha256
from compress.tasks.preprocessing import Fit
from compress.zoo.image_files import ImageFiles, folders_in, images_below, sampled
from compress.zoo.source import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)
"""The means of these."""
DEFAULT_SIZE = (224, 224)
TEN = 10
AS_TEXT = (
    "classes are numbers in the order of their text, as torchvision reads them: 0, 1, 10, ... "
    "(class_order = 'number' reads them as numbers)"
)
TEST_ONE_IN = 5
FEW = 5
"""Images a class, on average, below which a flat folder is for testing alone."""
MOST_HELD = 1000
"""About as many of a large set for testing are held out for calibration and validation."""
BY_SAMPLES = "of files above 12 kB the fingerprint covers samples of their bytes, not all"

Files = Mapping[str, Sequence[Path]]
"""Image files by class."""


def image_folder(
    folder: Path, fit: Fit, channels: int = 3, class_order: str | None = None
) -> Source:
    """Return `DIR/{train,test}[/val]/CLASS/*` or flat `DIR/CLASS/*` as a source.

    `val` may also be called `validation`; without `test` it is the test split, as in ImageNet.
    In a flat folder the SHA-256 of an image's relative path decides: one in five is for testing,
    whatever is added later. Where there is nothing to train on (no `train`, or a flat folder with
    a few images a class) the same draw takes a part for calibration and validation, and the rest
    is for testing. What is `ignored` is skipped at every level. The fingerprint covers the relative
    paths and what `sampled` covers of the files, since hashing all of a large set takes too long.
    Classes are numbered in the order of their names as text, as torchvision does, in that of
    numbers, or of the lines of a file: `class_order` is 'text', 'number' or the file's path.
    Raises UserError for any other layout.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r} to read images from")
    parts, note, untrainable = _parts(folder)
    classes = _ordered(sorted(parts["train"]), class_order)
    if class_order is None and all(map(str.isdecimal, classes)) and len(classes) > TEN:
        note = "; ".join(filter(None, [note, AS_TEXT]))
    _check_classes(folder, parts, classes, untrainable)
    splits = {part: _split(files, classes, fit, channels) for part, files in parts.items()}
    training = _fingerprint(folder, {part: parts[part] for part in parts if part != "test"})
    return Source(
        name=folder.resolve().name,
        classes=classes,
        channels=channels,
        size=fit.size,
        fit=fit,
        train=splits["train"],
        test=splits["test"],
        validation=splits["train"] if untrainable else splits.get("val"),
        fingerprint=digest([training, _fingerprint(folder, {"test": parts["test"]})]),
        training_fingerprint=training,
        mean=IMAGENET_MEAN if channels == 3 else GRAY_MEAN,
        std=IMAGENET_STD if channels == 3 else GRAY_STD,
        augment="flip-crop",
        note="; ".join(filter(None, [BY_SAMPLES, note])),
        untrainable=untrainable,
    )


def _ordered(classes: list[str], order: str | None) -> tuple[str, ...]:
    """Return the names of classes in the order of their numbers."""
    if order in (None, "text"):
        return tuple(classes)
    if order == "number":
        if named := [name for name in classes if not name.isdecimal()]:
            raise UserError(f"class_order is number, and there are classes such as {named[0]!r}")
        return tuple(sorted(classes, key=int))
    try:
        listed = [line.strip() for line in Path(str(order)).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_order is text, number or a file of names: {error}") from None
    names = [unicodedata.normalize("NFC", name) for name in listed if name]
    if sorted(names) != classes:
        differing = sorted(set(names) ^ set(classes)) or ["a name stands twice"]
        raise UserError(f"{order} does not list the folder's classes, each once: {differing[:5]}")
    return tuple(names)


def _parts(folder: Path) -> tuple[dict[str, Files], str, str]:
    """Return each split's image files by class, how they were split, and why none are to train."""
    names = {"train": "train", "test": "test", "val": "val", "validation": "val"}
    there = [place.name for place in folders_in(folder)]
    if "train" not in there and not (there and set(there) <= names.keys()):
        return _flat(folder)
    parts = {names[name]: _by_class(folder / name) for name in names if name in there}
    if "train" not in parts:
        return _for_testing_alone(folder, parts)
    if "test" in parts:
        return parts, "", ""
    if "val" not in parts:
        raise UserError(f"{folder} has a folder 'train' but neither 'test' nor 'val'")
    note = "the source's 'val' is the test split"
    return {"train": parts["train"], "test": parts["val"]}, note, ""


def _flat(folder: Path) -> tuple[dict[str, Files], str, str]:
    files = _by_class(folder)
    train, test = _drawn(folder, files, TEST_ONE_IN)
    if files and sum(map(len, files.values())) < FEW * len(files):
        return _for_testing_alone(folder, {"test": files})
    note = "one image in five, drawn by its path, is for testing"
    return {"train": train, "test": test}, note, ""


def _for_testing_alone(
    folder: Path, parts: Mapping[str, Files]
) -> tuple[dict[str, Files], str, str]:
    """Split what is for testing, in part or as a whole: without training images."""
    if len(parts) == 2:
        held, test = parts["val"], parts["test"]
        how = "its 'val' serves calibration and validation"
    else:
        [files] = parts.values()
        whole = sum(map(len, files.values()))
        test, held = _drawn(folder, files, max(TEST_ONE_IN, whole // MOST_HELD))
        count = sum(map(len, held.values()))
        how = (
            f"{count:,} of its {whole:,} images, drawn by their paths, serve calibration and "
            f"validation, the others are for testing"
        )
    # One class may have images in one of the two alone.
    classes = sorted({*held, *test})
    held, test = ({name: part.get(name, ()) for name in classes} for part in (held, test))
    why = (
        f"{folder} has no training images, or too few: put them into {folder}/train/CLASS/, or use "
        f"steps that do not train"
    )
    return {"train": held, "test": test}, f"the source has no training images: {how}", why


def _drawn(
    folder: Path, files: Files, one_in: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the files that their paths do not draw, and one in so many that they do."""
    rest: dict[str, list[Path]] = {}
    drawn: dict[str, list[Path]] = {}
    for name, paths in files.items():
        rest[name], drawn[name] = [], []
        for path in paths:
            key = path.relative_to(folder).as_posix()
            draw = int(sha256(key.encode())[:8], 16)
            (rest if draw % one_in else drawn)[name].append(path)
    return rest, drawn


def _by_class(folder: Path) -> Files:
    """Return the image files of each class folder, sorted.

    Names that one system composes of other code points than another are one class.
    """
    found: dict[str, list[Path]] = {}
    for place in folders_in(folder):
        found.setdefault(unicodedata.normalize("NFC", place.name), []).extend(images_below(place))
    return found


def _check_classes(
    folder: Path, parts: Mapping[str, Files], classes: tuple[str, ...], untrainable: str
) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{folder} holds {len(classes)} class folder(s), but at least two are needed: put "
            f"the images into {folder}/train/CLASS/ and {folder}/test/CLASS/"
        )
    for name in () if untrainable else classes:
        if not parts["train"][name]:
            raise UserError(f"class {name!r} in {folder} has no training images")
    for part, files in parts.items():
        if foreign := sorted(set(files) - set(classes)):
            raise UserError(f"{folder}/{part} has classes that 'train' lacks: {foreign[:5]}")


def _split(files: Files, classes: tuple[str, ...], fit: Fit, channels: int) -> ImageFiles:
    pairs = [(path, classes.index(name)) for name in sorted(files) for path in files[name]]
    return ImageFiles([path for path, _ in pairs], [label for _, label in pairs], fit, channels)


def _fingerprint(folder: Path, parts: Mapping[str, Files]) -> str:
    lines = [
        f"{part} {path.relative_to(folder).as_posix()} {sampled(path)}\n"
        for part in sorted(parts)
        for name in sorted(parts[part])
        for path in parts[part][name]
    ]
    return sha256("".join(lines).encode())
