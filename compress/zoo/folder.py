"""Folders of image files as a data source: the split and the class of every file."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress.errors import UserError
from compress.system.amounts import plural
from compress.system.files import digest, nearest_path, sha256
from compress.tasks.preprocessing import Fit, Settings
from compress.zoo.image_files import (
    ImageFiles,
    files_below,
    folders_in,
    has_images,
    ignored,
    sampled,
)
from compress.zoo.source import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)
"""The means of these."""
DEFAULT_SIZE = (224, 224)
EXACT = {"train": "train", "test": "test", "val": "val", "validation": "val"}
"""What the folders of splits are called."""
SPLITS = {
    **EXACT,
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("valid",), "val"),
}
"""What else they may be called, in any case, where none is called as in `EXACT`."""
TEST_ONE_IN = 5
FEW = 5
"""Images a class, on average, below which a flat folder is for testing alone."""
MOST_HELD = 1000
"""About as many of a large set for testing are held out for calibration and validation."""
BY_SAMPLES = "of files above 12 kB the fingerprint covers samples of their bytes, not all"

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
"""How the names of archives of such folders end."""
MADE = "models"
"""A folder that a run makes in its own."""
NAMED = 3
"""Classes that a note names."""

Files = Mapping[str, Sequence[Path]]
"""Image files by class."""


@dataclass
class Layout:
    """Each split's image files by class, what there is to say of them, and what was skipped."""

    parts: dict[str, Files]
    notes: list[str] = field(default_factory=list)
    untrainable: str = ""
    """Why there is nothing to train on."""
    skipped: list[Path] = field(default_factory=list)
    nested: set[str] = field(default_factory=set)
    """Classes whose images lie in folders below theirs alone."""


def image_folder(
    folder: Path,
    fit: Fit,
    channels: int = 3,
    class_order: str | tuple[str, ...] | None = None,
) -> Source:
    """Return `DIR/{train,test}[/val]/CLASS/*` or flat `DIR/CLASS/*` as a source.

    Splits are called as in `SPLITS`; without `test`, `val` is the test split, as in ImageNet.
    In a flat folder the SHA-256 of an image's relative path decides: one in five is for testing,
    whatever is added later, except that every class keeps one for training. Where there is nothing
    to train on (no `train`, or a flat folder with a few images a class) the same draw takes a part
    for calibration and validation, and the rest is for testing. What is `ignored` is skipped at
    every level. The fingerprint covers the relative paths and what `sampled` covers of the files,
    since hashing all of a large set takes too long.
    Classes are numbered in the order of their names as text, as torchvision does, in that of
    numbers, or of the lines of a file: `class_order` is 'text', 'number' or the file's path; or
    that of the names themselves, where these are the folder's.
    Raises UserError for any other layout.
    """
    if not folder.is_dir():
        # Of files only archives can be meant, such as the one that this was to be.
        near = nearest_path(
            folder, lambda one: one.is_dir() or one.suffix == folder.suffix in ARCHIVES
        )
        raise UserError(f"there is no folder {str(folder)!r} to read images from{near}")
    layout = _layout(folder)
    parts, untrainable = layout.parts, layout.untrainable
    classes = _ordered(sorted(parts["train"]), class_order, only_tested=bool(untrainable))
    notes = [BY_SAMPLES, *layout.notes, _nested(sorted(layout.nested))]
    if further := [name for name in classes if name not in parts["train"]]:
        count = f"{len(further):,} of {len(classes):,} classes in {class_order} have"
        notes.append(f"{count} no images: {_listed(further)}")
        parts = {part: {**dict.fromkeys(further, ()), **files} for part, files in parts.items()}
    _check_classes(folder, parts, classes, untrainable)
    _check_links(folder, parts)
    notes.append(_skipped(folder, layout.skipped))
    if class_order is None:
        notes.append(_order_note(classes))
    splits = {part: _split(files, classes, fit, channels) for part, files in parts.items()}
    usual = usual_levels(channels)
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
        mean=usual.mean,
        std=usual.std,
        augment="flip-crop",
        note="; ".join(filter(None, notes)),
        untrainable=untrainable,
    )


def usual_levels(channels: int) -> Settings:
    """Return the usual mean and std of photographs, RGB or gray."""
    if channels == 1:
        return Settings(mean=GRAY_MEAN, std=GRAY_STD)
    return Settings(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def split_of(name: str) -> str | None:
    """Return the split whose folder has this name: 'train', 'test' or 'val'; None of a class."""
    return SPLITS.get(name.lower())


def _order_note(classes: tuple[str, ...]) -> str:
    """Return that classes are in the order of their text, where it is not that of numbers."""
    if not all(map(str.isdecimal, classes)) or sorted(classes, key=int) == list(classes):
        return ""
    first = _listed(classes)
    return (
        f"classes are numbers in the order of their text, as torchvision reads them: {first} "
        f"(class_order = 'number' reads them as numbers)"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _nested(classes: Sequence[str]) -> str:
    if not classes:
        return ""
    count = "1 class" if len(classes) == 1 else f"{len(classes):,} classes"
    return (
        f"images of {count} lie in folders below theirs: {_listed(classes)} (is the folder one "
        f"level too high?)"
    )


def _skipped(folder: Path, files: Sequence[Path]) -> str:
    if not files:
        return ""
    first = files[0].relative_to(folder).as_posix()
    if len(files) == 1:
        return f"1 file of another kind was skipped: {first}"
    return f"{len(files):,} files of other kinds were skipped, such as {first}"


def _ordered(
    classes: list[str], order: str | tuple[str, ...] | None, only_tested: bool
) -> tuple[str, ...]:
    """Return the names of classes in the order of their numbers.

    A file may list further classes where nothing is trained: of what the weights know, the images
    may show a part.
    """
    if isinstance(order, tuple) and sorted(order) == classes:
        return order
    if order in (None, "text") or isinstance(order, tuple):
        return tuple(classes)
    if order == "number":
        if named := [name for name in classes if not name.isdecimal()]:
            raise UserError(f"class_order is number, and there are classes such as {named[0]!r}")
        return tuple(sorted(classes, key=int))
    try:
        listed = [line.strip() for line in Path(str(order)).read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_order is text, number or a file of names: {error}") from None
    names = [unicodedata.normalize("NFC", name) for name in listed if name]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{order} lists {twice[0]!r} twice")
    if missing := [name for name in classes if name not in set(names)]:
        raise UserError(
            f"{order} does not list all of the folder's classes: {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing in it"
        )
    if (further := sorted({*names} - {*classes})) and not only_tested:
        raise UserError(
            f"{order} lists classes that the folder has no images of: {_listed(further)}. That is "
            f"possible only where nothing is trained, with images for testing alone"
        )
    return tuple(names)


def splits_in(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return which of a folder's folders are its splits, by 'train', 'test' and 'val'.

    Those that are called otherwise than in `EXACT` are none where others have their part, where
    'val' is the test split already, or where the folder would be one of classes without them.
    """
    found: dict[str, str] = {}
    for exact in (True, False):
        for name in names:
            part = EXACT.get(name) if exact else SPLITS.get(name.lower())
            if part is None or name in found.values():
                continue
            if part not in found:
                found[part] = name
            elif exact or found[part] not in EXACT:
                raise UserError(
                    f"{folder} has both {found[part]!r} and {name!r}, which are names of the same "
                    f"split: put their images into one of them"
                )
        if exact and {"train", "val"} <= found.keys():
            break
    guessed = [name for name in found.values() if name not in EXACT]
    if guessed and len(found) < len(names) and not {"test", "val"} & found.keys():
        return {}  # a class may be called 'Train'
    return found


def would_read(folder: Path, place: Path) -> bool:
    """Whether what is written to a place would be read with the images of a folder.

    As a class, within a class or a split, or because beside it splits would be classes, too.
    """
    if not folder.is_dir():
        return False  # an archive; or nothing, which is refused when it is read
    folder, place = folder.resolve(), place.resolve()
    names, new = {one.name for one in folders_in(folder)}, set[str]()
    if place.is_relative_to(folder):
        inside = place.relative_to(folder).parts or (MADE,)
        if any(map(ignored, inside)):
            return False
        new.add(inside[0])
    try:
        read = {*_splits_of(folder, sorted(names | new)).values()} or names | new
    except UserError:  # two names of one split
        return any(split_of(name) for name in new)
    linked = [(folder / name).resolve() for name in read]
    return bool(new & read) or any(map(place.is_relative_to, linked))


def _splits_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return which of a folder's folders are its splits; none where all of them are classes."""
    found = splits_in(folder, names)
    return found if "train" in found or len(found) == len(names) else {}


def _layout(folder: Path) -> Layout:
    """Return each split's image files by class, and how they were split."""
    names = [place.name for place in folders_in(folder)]
    of_part = _splits_of(folder, names)
    if not of_part:
        return _flat(folder)
    others = [name for name in names if name not in of_part.values()]
    layout = Layout({})
    for part, name in sorted(of_part.items()):
        layout.parts[part] = _by_class(folder / name, layout)
    if others:
        layout.notes.append(f"folders beside its splits are not used: {_listed(others)}")
    for part, name in sorted(of_part.items()):
        if name not in EXACT:
            layout.notes.append(f"its folder {name!r} is the {part} split")
    if "train" not in of_part:
        return _for_testing_alone(folder, layout)
    if "test" not in of_part:
        if "val" not in of_part:
            raise UserError(
                f"{folder} has a folder {of_part['train']!r} but neither 'test' nor 'val'. (If it "
                f"is a class, put all classes into {folder}/train/ and {folder}/test/)"
            )
        layout.parts["test"] = layout.parts.pop("val")
        layout.notes.append(f"the source's {of_part['val']!r} is the test split")
    return layout


def _flat(folder: Path) -> Layout:
    layout = Layout({})
    layout.parts["test"] = files = _by_class(folder, layout)
    if files and sum(map(len, files.values())) < FEW * len(files):
        return _for_testing_alone(folder, layout)
    train, test = _drawn(folder, files, TEST_ONE_IN, in_each=True)
    layout.parts = {"train": train, "test": test}
    layout.notes.append("one image in five, drawn by its path, is for testing")
    if untested := [name for name in files if not test[name]]:
        count = f"{len(untested):,} of {len(files):,} classes"
        layout.notes.append(f"{count} have no images for testing, being small: {_listed(untested)}")
    return layout


def _for_testing_alone(folder: Path, layout: Layout) -> Layout:
    """Split what is for testing, in part or as a whole: without training images."""
    held: Files
    test: Files
    if len(layout.parts) == 2:
        held, test = layout.parts["val"], layout.parts["test"]
        how = "its 'val' serves calibration and validation"
    else:
        [files] = layout.parts.values()
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
    if empty := [name for name in classes if not held[name] and not test[name]]:
        layout.notes.append(f"classes without images keep their numbers: {_listed(empty)}")
    layout.parts = {"train": held, "test": test}
    layout.notes.insert(0, f"the source has no training images: {how}")
    layout.untrainable = (
        f"{folder} has no training images, or too few: put them into {folder}/train/CLASS/, or use "
        f"steps that do not train"
    )
    return layout


def _drawn(
    folder: Path, files: Files, one_in: int, in_each: bool = False
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the files that their paths do not draw, and one in so many that they do.

    Of two files or more, each side has one at least. `in_each` class, one is not drawn.
    """

    def draw(path: Path) -> int:
        return int(sha256(path.relative_to(folder).as_posix().encode())[:8], 16)

    rest: dict[str, list[Path]] = {}
    drawn: dict[str, list[Path]] = {}
    for name, paths in files.items():
        rest[name], drawn[name] = [], []
        for path in paths:
            (rest if draw(path) % one_in else drawn)[name].append(path)
        if in_each and paths and not rest[name]:
            _move(min(paths, key=draw), name, drawn, rest)
    if not any(rest.values()):
        _move_one(drawn, rest, draw)
    elif not any(drawn.values()):
        _move_one(rest, drawn, draw)
    return rest, drawn


def _move_one(
    source: dict[str, list[Path]], target: dict[str, list[Path]], draw: Callable[[Path], int]
) -> None:
    """Move a file of the largest class, unless there is only one."""
    largest = max(source, key=lambda name: len(source[name]), default="")
    if sum(map(len, source.values())) > 1:
        _move(min(source[largest], key=draw), largest, source, target)


def _move(
    path: Path, name: str, source: dict[str, list[Path]], target: dict[str, list[Path]]
) -> None:
    source[name].remove(path)
    target[name].append(path)


def _by_class(folder: Path, layout: Layout) -> Files:
    """Return the image files of each class folder, sorted; add to the layout what to say of them.

    Names that one system composes of other code points than another are one class.
    """
    found: dict[str, list[Path]] = {}
    for place in folders_in(folder):
        images, others = files_below(place)
        name = unicodedata.normalize("NFC", place.name)
        found.setdefault(name, []).extend(images)
        layout.skipped += others
        if images and not any(path.parent == place for path in images):
            layout.nested.add(name)
    return found


def _check_classes(
    folder: Path, parts: Mapping[str, Files], classes: tuple[str, ...], untrainable: str
) -> None:
    if len(classes) < 2:
        hint = ""
        if has_images(folder):
            hint = ". It holds images itself: if it is one class of several, name the folder "
            hint += f"above it, {folder.resolve().parent}"
        raise UserError(
            f"{folder} holds {plural(len(classes), 'class folder')}, but at least two are needed: "
            f"put the images into {folder}/CLASS/, or into {folder}/train/CLASS/ and "
            f"{folder}/test/CLASS/{hint}"
        )
    if empty := [name for name in classes if not parts["train"][name] and not untrainable]:
        raise UserError(
            f"class {empty[0]!r} in {folder} has no training images"
            + (f", nor have {_listed(empty[1:])}" if empty[1:] else "")
            + ": remove its folder, or put images into it"
        )
    for part, files in parts.items():
        if foreign := sorted(set(files) - set(classes)):
            raise UserError(f"{folder}/{part} has classes that 'train' lacks: {foreign[:5]}")


def _check_links(folder: Path, parts: Mapping[str, Files]) -> None:
    """Refuse images that stand in two splits or classes by way of a link to a folder."""
    real: dict[Path, Path] = {}
    seen: dict[Path, Path] = {}
    for files in parts.values():
        for paths in files.values():
            for path in paths:
                if path.parent not in real:
                    real[path.parent] = path.parent.resolve()
                first = seen.setdefault(real[path.parent] / path.name, path)
                if first != path:
                    both = (one.relative_to(folder).as_posix() for one in (first, path))
                    raise UserError(
                        f"{' and '.join(both)} in {folder} are one file, by way of a link: an "
                        f"image belongs to one class and one split, so remove the link"
                    )


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
