"""Images and labels held in NumPy arrays: reading, checking, fingerprint."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import UserError, clause
from compress.system.files import digest, nearest_path
from compress.tasks.base import TensorSplit
from compress.zoo.source import Source

MOST_CLASSES = 100_000
"""Without names; one that is larger is no class number, and its outputs would fill the memory."""
UNLABELLED = 255
"""What -1, with which many files mark images without a label, becomes in uint8."""
MOST_CHANNELS = 4
Pair = tuple[Any, Any]
"""Images (N, H, W, C) or (N, H, W) in uint8, and integer labels (N,)."""
Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Images (N, H, W, C) and labels by split."""


def array_source(
    name: str,
    train: Pair,
    test: Pair,
    validation: Pair = (None, None),
    classes: Sequence[str] | None = None,
    published: bool = False,
    **usual: Any,
) -> Source:
    """Check the arrays and return them as a source; `usual` are its usual settings.

    Raises UserError for anything but uint8 images of one shape with one integer label each.
    The fingerprint is a SHA-256 over every split's pixels and labels and the class names. What is
    `published` never changes, so one for all splits serves.
    """
    pairs = {"train": train, "test": test, "val": validation}
    absent = [part is None for part in validation]
    if all(absent):
        del pairs["val"]
    elif any(absent):
        raise UserError(f"{name} must have x_val and y_val together, or neither")
    arrays = {part: _checked(part, *pair) for part, pair in pairs.items()}
    shapes = {part: images.shape[1:] for part, (images, _) in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"x_{part} {shape}" for part, shape in shapes.items())
        raise UserError(f"the splits hold images of different shapes (H, W, C): {listed}")
    names = _class_names(arrays, classes)
    notes = [_unused(arrays, names), _channels_note(shapes["train"])]
    splits = {part: _split(*pair) for part, pair in arrays.items()}
    height, width, channels = shapes["train"]
    if published:
        fingerprint, training = _fingerprint(arrays, names), ""
    else:
        testing = {"test": arrays.pop("test")}
        training = _fingerprint(arrays, names)
        fingerprint = digest([training, _fingerprint(testing, names)])
    return Source(
        name=name,
        classes=names,
        channels=channels,
        size=(height, width),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
        fingerprint=fingerprint,
        training_fingerprint=training,
        named=classes is not None,
        note="; ".join(filter(None, notes)),
        **usual,
    )


def _checked(part: str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = checked_images(f"x_{part}", np.asarray(images)), _labels(f"y_{part}", np.asarray(labels))
    if len(x) != len(y):
        raise UserError(f"x_{part} has {len(x)} images, but y_{part} has {len(y)} labels")
    return x, y


def checked_images(name: str, x: np.ndarray) -> np.ndarray:
    """Return uint8 images as (N, H, W, C). Raises UserError for anything else."""
    if x.dtype != np.uint8:
        raise UserError(
            f"{name} holds {x.dtype}, but images must be uint8 with values from 0 to 255: "
            f"convert values in [0, 1] with (x * 255).round().astype('uint8'), and do not "
            f"normalise them, since mean and std are applied later"
        )
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise UserError(f"{name} has the shape {x.shape}; it must be (N, H, W, C) or (N, H, W)")
    square = x.shape[1] < x.shape[2] == x.shape[3]
    if (x.shape[1] <= MOST_CHANNELS or square) and x.shape[3] > MOST_CHANNELS:
        raise UserError(
            f"{name} has the shape {x.shape}, which looks like channels first: move the "
            f"channels last with x.transpose(0, 2, 3, 1)"
        )
    return x


def _labels(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UserError(
            f"{name} has the shape {y.shape}; it must hold one class number for each image"
        )
    if len(y) and y.dtype.kind not in "iu":
        raise UserError(f"{name} holds {y.dtype}, but labels must be whole class numbers from 0")
    if len(y) and y.min() < 0:
        raise UserError(f"{name} holds the label {y.min()}, but class numbers start at 0")
    return y.astype(np.int64)


def _class_names(arrays: Arrays, classes: Sequence[str] | None) -> tuple[str, ...]:
    highest = {part: int(labels.max(initial=-1)) for part, (_, labels) in arrays.items()}
    for part, label in highest.items() if classes is None else ():
        if label >= MOST_CLASSES:
            raise UserError(
                f"y_{part} holds the label {label:,}: labels are class numbers from 0, and without "
                f"names of the classes they must be below {MOST_CLASSES:,}"
            )
    if classes is None:
        return tuple(str(number) for number in range(max(highest.values()) + 1))
    for part, label in highest.items():
        if label >= len(classes):
            raise UserError(
                f"y_{part} holds the label {label}, but there are only {len(classes)} class "
                f"names (numbers 0 to {len(classes) - 1})"
            )
    return tuple(str(name) for name in classes)


def _unused(arrays: Arrays, names: tuple[str, ...]) -> str:
    """Return a note on classes without training items; '' if there are none.

    Raises UserError for classes that another split has and the training lacks.
    """
    trained = set(np.unique(arrays["train"][1]).tolist())
    # Of a training split that is too small that is said later.
    for part, (_, labels) in arrays.items() if len(arrays["train"][1]) > 1 else ():
        if foreign := sorted(set(np.unique(labels).tolist()) - trained):
            raise UserError(f"y_{part} has classes that y_train lacks: {foreign[:5]}")
    unused = [number for number in range(len(names)) if number not in trained]
    if not unused:
        return ""
    listed = ", ".join(map(str, unused[:5])) + (", ..." if len(unused) > 5 else "")
    note = (
        f"{len(unused)} of {len(names)} classes have no items ({listed}): a model has outputs for "
        f"them all the same"
    )
    if UNLABELLED in trained and UNLABELLED - 1 in unused:
        note += (
            f". {UNLABELLED} is what -1 becomes in uint8: if it marks images without a label, "
            f"leave those out"
        )
    return note


def _channels_note(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    if channels in (1, 3):
        return ""
    return f"images of {height} x {width} pixels and {channels} channels (the arrays' last axis)"


def _split(images: np.ndarray, labels: np.ndarray) -> TensorSplit:
    # Always a copy: what the caller does with their array later must not reach us.
    return TensorSplit((channels_first(images),), torch.from_numpy(np.array(labels)))


def channels_first(images: np.ndarray) -> Tensor:
    """Return a copy of images (N, H, W, C) as a tensor (N, C, H, W)."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def _fingerprint(arrays: Arrays, classes: tuple[str, ...]) -> str:
    content = hashlib.sha256(json.dumps(classes).encode())
    for part in sorted(arrays):
        for array in arrays[part]:
            content.update(f"{part} {array.shape}".encode())
            content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


# --- files --------------------------------------------------------------------------------


def read_arrays(path: Path, **usual: Any) -> Source:
    """Read an .npz with x_train, y_train, x_test, y_test, or a folder of shards.

    The .npz may hold x_val and y_val, too, and `classes`, an array of their names.

    A folder holds train-*.npz and test.npz (optionally val.npz), each with arrays x and y, and
    optionally classes.json. Nothing is unpickled. Raises UserError for anything else.
    """
    usual.setdefault("name", path.stem if path.suffix == ".npz" else path.name)
    if path.is_dir():
        return _read_shards(path, **usual)
    if not path.is_file():
        near = nearest_path(path, lambda one: one.is_dir() or one.suffix == ".npz")
        raise UserError(f"there is no file or folder {str(path)!r} to read arrays from{near}")
    keys = ("x_train", "y_train", "x_test", "y_test")
    arrays = read_npz(path, keys, optional=("x_val", "y_val", "classes"))
    if "classes" in arrays:
        names = arrays["classes"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise UserError(
                f"classes in {path} is an array of {names.dtype} and shape {names.shape}; it must "
                f"hold the classes' names: np.array(['cat', 'dog'])"
            )
        usual["classes"] = names.tolist()
    return array_source(
        train=(arrays["x_train"], arrays["y_train"]),
        test=(arrays["x_test"], arrays["y_test"]),
        validation=(arrays.get("x_val"), arrays.get("y_val")),
        **usual,
    )


def _read_shards(folder: Path, **usual: Any) -> Source:
    shards = sorted(folder.glob("train-*.npz")) or [folder / "train.npz"]
    for path in (shards[0], folder / "test.npz"):
        if not path.is_file():
            raise UserError(
                f"{folder} has no {path.name}: a folder of arrays holds train-*.npz (or "
                f"train.npz) and test.npz, each with arrays x and y"
            )
    test, validation = folder / "test.npz", folder / "val.npz"
    pairs: dict[Path, Pair] = {}
    errors = []
    for path in [*shards, test, *([validation] if validation.is_file() else [])]:
        try:
            arrays = read_npz(path, ("x", "y"))
            pairs[path] = arrays["x"], arrays["y"]
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    try:
        x, y = (np.concatenate(parts) for parts in zip(*map(pairs.pop, shards), strict=True))
    except ValueError as error:
        raise UserError(f"the shards do not fit together: {error}") from None
    return array_source(
        train=(x, y),
        test=pairs[test],
        validation=pairs.get(validation, (None, None)),
        classes=_read_classes(folder / "classes.json"),
        **usual,
    )


def _read_classes(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        classes = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path} must hold a JSON list of class names")
    return classes


def read_npz(
    path: Path, keys: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the named arrays of an .npz file; object arrays are refused, not unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            if missing := [key for key in keys if key not in present]:
                raise UserError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(present)}")
            return {key: _member(archive, key) for key in (*keys, *optional) if key in present}
    except UserError:
        raise
    except Exception as error:  # readers of damaged zip files and headers raise almost anything
        raise UserError(
            f"cannot read {path}: {clause(error)}. It must be an .npz file with arrays of plain "
            f"numbers, as numpy.savez writes it"
        ) from error


def _member(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # at the end, the checksum has been compared as well
            raise ValueError(f"{key} holds more bytes than its header claims")
    return array
