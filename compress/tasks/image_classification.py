"""Image classification: images in, one label out; preprocessing and augmentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.stateless_rng import StatelessRNG
from compress.tasks.base import Task, Tensors
from compress.tasks.preprocessing import Preprocessing, script


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
    samples: Tensor | None = field(default=None, repr=False, compare=False)
    """A few raw images of the data, uint8 (N, C, H, W)."""
    origin: str = field(default="", compare=False)
    """In words: where the preprocessing comes from."""
    kind: str = field(default="image-classification", init=False)

    AUGMENTS = ("flip", "crop", "cutout", "mixup")
    unit = "images"
    misfit = (
        "Use larger images (size=...), a model for small ones, or stem='small' where the model "
        "has it"
    )

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"a classification task needs at least two classes, not {[*self.classes]}"
            )
        names = self.augments
        if set(names) - set(self.AUGMENTS) or len(set(names)) < len(names):
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

    def input_words(self) -> str:
        return self.preprocessing.words() + (f" ({self.origin})" if self.origin else "")

    def output_shape(self) -> tuple[int, ...]:
        return (len(self.classes),)

    def probe(self, batch: int = 4) -> Tensors:
        """Return prepared images of the data, or noise if it has too few, (N, C, H, W)."""
        images = self.samples
        if images is None or len(images) < batch:
            shape = (batch, self.preprocessing.channels, *self.preprocessing.size)
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return (self.preprocessing.normalize(images[:batch]),)

    def arguments(self) -> dict[str, Any]:
        return {
            "num_classes": len(self.classes),
            "in_channels": self.preprocessing.channels,
            "input_size": tuple(self.preprocessing.size),
        }

    def script(self) -> str:
        return "" if self.preprocessing.fit is None else script(self.preprocessing)

    def metadata(self) -> dict[str, str]:
        return {
            "labels": json.dumps(list(self.classes)),
            "preprocessing": json.dumps(self.preprocessing.to_json()),
        }

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
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        return outputs.argmax(1) == labels


def augment_images(images: Tensor, rng: StatelessRNG, augments: Sequence[str]) -> Tensor:
    """Mirror, shift and cut out of normalised images (N, C, H, W), each by its own draws.

    The draws are made on the CPU, where their items lie: a GPU would get dozens of tiny kernels.
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
