"""Images and labels held in NumPy arrays: reading, checking, fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.errors import UserError
from compress.system.files import digest
from compress.tasks.base import TensorSplit
from compress.zoo.source import Source

# Images (N, H, W, C) or (N, H, W) in uint8, and integer labels (N,).
Pair = tuple[Any, Any]


def array_source(
    name: str,
    train: Pair,
    test: Pair,
    validation: Pair | None = None,
    classes: Sequence[str] | None = None,
    published: bool = False,
    **usual: Any,
) -> Source:
    """Check the arrays and return them as a source; `usual` are its usual settings.

    Raises UserError for anything but uint8 images of one shape with one integer label each.
    The fingerprint is a SHA-256 over every split's pixels and labels and the class names. What is
    `published` never changes, so one for all splits serves.
    """
    given = {"train": train, "test": test}
    if validation is not None:
        given["val"] = validation
    pairs = {part: _checked(part, *pair) for part, pair in given.items()}
    _check_shapes(pairs)
    names = _class_names(pairs, classes)
    splits = {part: _split(x, y) for part, (x, y) in pairs.items()}
    height, width, channels = pairs["train"][0].shape[1:]
    if published:
        whole, training = _fingerprint(pairs, names), ""
    else:
        tested = {"test": pairs.pop("test")}
        training = _fingerprint(pairs, names)
        whole = digest([training, _fingerprint(tested, names)])
    return Source(
        name=name,
        classes=names,
        channels=channels,
        size=(height, width),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
        fingerprint=whole,
        training_fingerprint=training,
        named=classes is not None,
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
    if x.shape[1] in (1, 3) and x.shape[3] > 4:
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


def _check_shapes(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    shapes = {part: x.shape[1:] for part, (x, _) in pairs.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"x_{part} {shape}" for part, shape in shapes.items())
        raise UserError(f"the splits hold images of different shapes (H, W, C): {listed}")


def _class_names(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    highest = {part: int(y.max(initial=-1)) for part, (_, y) in pairs.items()}
    if classes is None:
        return tuple(str(number) for number in range(max(highest.values()) + 1))
    for part, label in highest.items():
        if label >= len(classes):
            raise UserError(
                f"y_{part} holds the label {label}, but there are only {len(classes)} class "
                f"names (numbers 0 to {len(classes) - 1})"
            )
    return tuple(str(name) for name in classes)


def _split(x: np.ndarray, y: np.ndarray) -> TensorSplit:
    # Always a copy: what the caller does with their array later must not reach us.
    images = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2), order="C"))
    return TensorSplit((images,), torch.from_numpy(np.array(y)))


def _fingerprint(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...]
) -> str:
    content = hashlib.sha256(json.dumps(classes).encode())
    for part in sorted(pairs):
        for array in pairs[part]:
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
        raise UserError(f"there is no file or folder {str(path)!r} to read arrays from")
    keys = ("x_train", "y_train", "x_test", "y_test")
    arrays = read_npz(path, keys, optional=("x_val", "y_val", "classes"))
    pairs = [(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    if len(arrays.keys() & {"x_val", "y_val"}) == 1:
        raise UserError(f"{path} must hold x_val and y_val together, or neither")
    validation = (arrays["x_val"], arrays["y_val"]) if "x_val" in arrays else None
    if "classes" in arrays:
        names = arrays["classes"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise UserError(
                f"classes in {path} is an array of {names.dtype} and shape {names.shape}; it must "
                f"hold the classes' names: np.array(['cat', 'dog'])"
            )
        usual["classes"] = names.tolist()
    return array_source(train=pairs[0], test=pairs[1], validation=validation, **usual)


def _read_shards(folder: Path, **usual: Any) -> Source:
    shards = sorted(folder.glob("train-*.npz")) or [folder / "train.npz"]
    for path in (shards[0], folder / "test.npz"):
        if not path.is_file():
            raise UserError(
                f"{folder} has no {path.name}: a folder of arrays holds train-*.npz (or "
                f"train.npz) and test.npz, each with arrays x and y"
            )
    test, own = folder / "test.npz", folder / "val.npz"
    read = _all_read([*shards, test, *([own] if own.is_file() else [])])
    return array_source(
        train=_joined([read.pop(path) for path in shards]),
        test=read[test],
        validation=read.get(own),
        classes=_read_classes(folder / "classes.json"),
        **usual,
    )


def _all_read(paths: Sequence[Path]) -> dict[Path, Pair]:
    """Read some shards. Raises UserError that tells of all that cannot be read."""
    found, bad = {}, []
    for path in paths:
        try:
            arrays = read_npz(path, ("x", "y"))
            found[path] = arrays["x"], arrays["y"]
        except UserError as error:
            bad.append(str(error))
    if bad:
        raise UserError("\n".join(bad))
    return found


def _joined(shards: Sequence[Pair]) -> Pair:
    try:
        x, y = (np.concatenate(arrays) for arrays in zip(*shards, strict=True))
    except ValueError as error:
        raise UserError(f"the shards do not fit together: {error}") from None
    return x, y


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


def _check_sizes(file: np.lib.npyio.NpzFile) -> None:
    """Refuse an array whose header claims more than its file holds: NumPy would allocate it."""
    archive = file.zip
    assert archive is not None, "an open file has its archive"
    for entry in archive.infolist():
        with archive.open(entry) as stream:
            version = np.lib.format.read_magic(stream)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if reader is None:
                raise ValueError(f"{entry.filename} has the unknown format {version}")
            shape, _, kind = reader(stream)
            claimed = math.prod(shape) * kind.itemsize
            held = entry.file_size - stream.tell()
        if not kind.hasobject and claimed != held:
            raise ValueError(f"{entry.filename} claims {claimed} bytes and holds {held}")


def read_npz(
    path: Path, keys: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the named arrays of an .npz file; object arrays are refused, not unpickled."""
    try:
        # Opened here, since NumPy leaves a torn file open.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; save with numpy.savez instead")
            _check_sizes(file)
            if missing := [key for key in keys if key not in file]:
                raise UserError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files)}"
                )
            return {key: file[key] for key in (*keys, *optional) if key in file}
    except UserError:
        raise
    except Exception as error:  # readers of damaged zip files and headers raise almost anything
        raise UserError(
            f"cannot read {path}: {error}. It must be an .npz file with arrays of plain numbers"
        ) from error
