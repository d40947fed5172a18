"""What a model is for: the preprocessing, loss and metric of a task, and the data behind it.

Nothing here assumes that an input is one image: raw inputs and prepared inputs are tuples of
tensors with a leading batch dimension. Image classification is the first kind of task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.stateless_rng import StatelessRNG
from compress.system.files import digest, sha256

Tensors = tuple[Tensor, ...]


class Split(ABC):
    """An indexable part of a data set, which may lie on disk."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        """Return the raw inputs and the targets of the items at `index` (int64, shape (N,))."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensors, Tensor]]:
        """Yield every item once, in order."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.fetch(index)


class TensorSplit(Split):
    """A split held in memory: raw inputs and int64 targets, row by row."""

    def __init__(self, inputs: Tensors, targets: Tensor) -> None:
        lengths = {len(tensor) for tensor in (*inputs, targets)}
        if len(lengths) != 1:
            raise ValueError(f"inputs and targets differ in length: {sorted(lengths)}")
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        # Waiting for a copy would have a GPU finish all that it was given before.
        here = index.to(self.targets.device, non_blocking=True)
        return tuple(tensor[here] for tensor in self.inputs), self.targets[here]


class Subset(Split):
    """Some items of another split, in the given order."""

    def __init__(self, whole: Split, index: Tensor) -> None:
        self.whole = whole
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        return self.whole.fetch(self.index[index])


@dataclass(frozen=True)
class Preprocessing:
    """How a raw image becomes an input: resize, scale to [0, 1], subtract mean, divide by std.

    `size` is (height, width) in pixels; `mean` and `std` have one value per channel and refer
    to values in [0, 1]. One spec serves training, calibration, evaluation and the metadata of
    the ONNX file.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "none"
    """In words, how an image of another size comes to `size` before it is scaled."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values, but the images have {self.channels} "
                    f"channel(s): give one value per channel"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) of the right size to float32 inputs."""
        # A tensor that is made on a GPU waits until all that the GPU was given before is done.
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": "NCHW",
            "channels": self.channels,
            "size": list(self.size),
            "resize": self.resize,
            "scale": "1/255",
            "mean": list(self.mean),
            "std": list(self.std),
        }


class Task(ABC):
    """A kind of problem: how raw inputs are prepared, what is minimised, what counts as right."""

    kind: str
    name: str

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what defines the task, as JSON: for records, the store and ONNX metadata."""

    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of a model's outputs for one item, without the batch dimension."""

    @abstractmethod
    def example(self) -> Tensors:
        """Return input tensors with a batch dimension of 1."""

    @property
    def augmented(self) -> bool:
        """Whether an item looks otherwise in every view of it."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether an item is mixed with another one in training; then `mix` is called."""
        return False

    @abstractmethod
    def prepare(
        self, raw: Tensors, device: torch.device, rng: StatelessRNG | None = None
    ) -> Tensors:
        """Turn raw inputs into model inputs on `device`; with draws, augment them."""

    def mix(
        self, items: tuple[Tensors, Tensor], others: tuple[Tensors, Tensor], rng: StatelessRNG
    ) -> tuple[Tensors, Tensor]:
        """Return inputs and targets of items mixed with others, one by one."""
        raise NotImplementedError(f"{self.kind} does not mix items")

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean training loss against hard targets, a scalar."""

    @abstractmethod
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return for each item whether the output is right, a bool tensor of shape (N,)."""


@dataclass(frozen=True)
class ImageClassification(Task):
    """One label out of `classes` for every image; outputs are logits of shape (N, classes).

    `augment` is 'none', or some of `AUGMENTS` joined by hyphens, such as 'flip-crop-cutout'.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augment: str = "none"
    label_smoothing: float = 0.0
    kind: str = field(default="image-classification", init=False)

    AUGMENTS = ("flip", "crop", "cutout", "mixup")

    def __post_init__(self) -> None:
        given = self.augments
        if set(given) - set(self.AUGMENTS) or len(set(given)) < len(given):
            raise ValueError(
                f"augment is 'none', or some of {', '.join(self.AUGMENTS)} joined by hyphens, "
                f"such as 'flip-crop', not {self.augment!r}"
            )

    @property
    def augments(self) -> tuple[str, ...]:
        """The single augmentations."""
        return () if self.augment == "none" else tuple(self.augment.split("-"))

    @property
    def augmented(self) -> bool:
        return bool(self.augments)

    @property
    def mixes(self) -> bool:
        return "mixup" in self.augments

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "data": self.name,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            "augment": self.augment,
            **({"label_smoothing": self.label_smoothing} if self.label_smoothing else {}),
        }

    def output_shape(self) -> tuple[int, ...]:
        return (len(self.classes),)

    def example(self) -> Tensors:
        return (torch.zeros(1, self.preprocessing.channels, *self.preprocessing.size),)

    def prepare(
        self, raw: Tensors, device: torch.device, rng: StatelessRNG | None = None
    ) -> Tensors:
        inputs = self.preprocessing.normalize(raw[0].to(device, non_blocking=True))
        if rng is not None:
            inputs = augment_images(inputs, rng, self.augments)
        return (inputs,)

    def mix(
        self, items: tuple[Tensors, Tensor], others: tuple[Tensors, Tensor], rng: StatelessRNG
    ) -> tuple[Tensors, Tensor]:
        """Mixup with alpha = 1 (Zhang et al. 2018, section 2): shares are uniform in [0, 1).

        The targets become probabilities of shape (N, classes).
        """
        (images,), labels = items
        (more,), other_labels = others
        share = rng.uniform("mixup").to(images.device, non_blocking=True).view(-1, 1, 1, 1)
        first, second = (F.one_hot(y, len(self.classes)).float() for y in (labels, other_labels))
        part = share.view(-1, 1).to(labels.device)
        mixed = images * (1 - share) + more * share
        return (mixed,), first * (1 - part) + second * part

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy; targets are class numbers, or probabilities from `mix`."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.argmax(1) if targets.is_floating_point() else targets
        return outputs.argmax(1) == wanted


def augment_images(images: Tensor, rng: StatelessRNG, augments: Sequence[str]) -> Tensor:
    """Mirror, shift and cut out of normalised images (N, C, H, W), each by its own draws.

    StatelessRNG are made where their items lie, on the CPU: a GPU would get dozens of tiny kernels.
    'flip' mirrors half of them; 'crop' shifts by up to an eighth of the side, with zeros beyond
    the border (He et al. 2015, section 4.2: 4 pixels of 32); 'cutout' sets a square of half the
    side to zero, centred anywhere (DeVries and Taylor 2017, section 3.2: 16 pixels of 32).
    """
    if "flip" in augments or "crop" in augments:
        images = _shifted(images, rng, "flip" in augments, "crop" in augments)
    if "cutout" in augments:
        images = images * _holes(images, rng)
    return images


def _shifted(images: Tensor, rng: StatelessRNG, flip: bool, crop: bool) -> Tensor:
    count, _, height, width = images.shape
    pad_y, pad_x = (max(1, height // 8), max(1, width // 8)) if crop else (0, 0)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    device = images.device
    top = rng.below("top", 2 * pad_y + 1).to(device, non_blocking=True)
    left = rng.below("left", 2 * pad_x + 1).to(device, non_blocking=True)
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    if flip:
        mirrored = (rng.uniform("flip") < 0.5).to(device, non_blocking=True)[:, None]
        columns = torch.where(mirrored, columns.flip(1), columns)
    item = torch.arange(count, device=device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _holes(images: Tensor, rng: StatelessRNG) -> Tensor:
    """Return zero within a square of half the side and one elsewhere, (N, 1, H, W)."""
    inside = []
    for purpose, side in (("hole-y", images.shape[2]), ("hole-x", images.shape[3])):
        half = max(1, side // 2)
        begin = rng.below(purpose, side).to(images.device, non_blocking=True) - half // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= begin[:, None]) & (place < begin[:, None] + half))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return (~hole[:, None]).to(images.dtype)


@dataclass(frozen=True)
class Data:
    """The splits of a data source. Only the harness hands out `test`.

    `fingerprint` is a SHA-256 over the content of the source, `training_fingerprint` over what is
    not for testing ('': over all of it, which then never changes). The validation split is a
    function of the latter, not of a run's seed. `note` says what a reader of the record must know.
    """

    task: ImageClassification
    train: Split
    validation: Split
    calibration: Split
    test: Split
    fingerprint: str
    note: str = ""
    training_fingerprint: str = ""

    def identity(self) -> str:
        """Return a hash of what a step may use, so not of the test split: content and order."""
        splits = (self.train, self.validation, self.calibration)
        content = self.training_fingerprint or self.fingerprint
        return digest([content, *map(arrangement, splits)])

    def test_identity(self) -> str:
        """Return a hash of what is measured with: the source, and its test items in order."""
        return digest([self.fingerprint, arrangement(self.test)])


def arrangement(split: Split) -> list[Any]:
    """Return, as JSON, which items a split holds, in which order, as far as it is a subset."""
    if isinstance(split, Subset):
        index = split.index.cpu().to(torch.int64).contiguous()
        return [sha256(index.numpy().tobytes()), *arrangement(split.whole)]
    return [len(split)]


def prepared_batches(
    task: Task, split: Split, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensors, Tensor]]:
    """Yield (inputs, targets) of a split in order, prepared without augmentation."""
    for raw, targets in split.batches(batch_size):
        yield task.prepare(raw, torch.device(device)), targets


def stacked_inputs(task: Task, split: Split, count: int) -> Tensors:
    """Return `count` items, evenly spaced over a split, as one prepared batch per input.

    Evenly spaced, because image files lie sorted by class.
    """
    raw, _ = split.fetch(spaced(count, len(split)))
    return task.prepare(raw, torch.device("cpu"))


def spaced(count: int, length: int) -> Tensor:
    """Return `count` numbers below `length`, evenly spaced (all, if there are fewer)."""
    count = min(count, length)
    return torch.arange(count) * length // max(count, 1)


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names as a tuple; raise ValueError if there are fewer than two."""
    if len(classes) < 2:
        raise ValueError(f"a classification task needs at least two classes, not {list(classes)}")
    return tuple(str(name) for name in classes)
