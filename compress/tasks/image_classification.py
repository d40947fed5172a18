"""Image classification: images in, one label out; preprocessing and augmentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.stateless_rng import StatelessRNG
from compress.tasks.adapted import Adapted
from compress.tasks.augmentation import PHOTOS, augment_images, augment_photos
from compress.tasks.base import InputChange, Sight, Split, Task, Tensors, spaced
from compress.tasks.preprocessing import Preprocessing, Settings, script

PROBED = 4
"""Images of a task's probe."""
NAMED = 3
"""Classes that are named in words."""


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
    built_for: tuple[int, int] | None = field(default=None, compare=False)
    """The (height, width) of the images that models are built for; None: that of the inputs."""
    drawn_for: tuple[int, int] | None = None
    """The (height, width) of another model's images whose augmented views these show, too."""
    kind: str = field(default="image-classification", init=False)

    AUGMENTS = ("flip", "crop", *PHOTOS, "cutout", "mixup")
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
        if {"crop", "resizedcrop"} <= set(names):
            raise ValueError("augment has crop and resizedcrop, of which one is enough")

    @property
    def augments(self) -> tuple[str, ...]:
        """The single augmentations."""
        return () if self.augment == "none" else tuple(self.augment.split("-"))

    @property
    def augmented(self) -> bool:
        return bool(self.augments)

    @property
    def augments_raw(self) -> bool:
        return not set(PHOTOS).isdisjoint(self.augments)

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

    def output_words(self) -> str:
        some = [*self.classes[:NAMED], *["..."] * (len(self.classes) > NAMED)]
        return f"{super().output_words()} ({', '.join(some)})"

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
            "input_size": tuple(self.built_for or self.preprocessing.size),
        }

    def seen_by(self, settings: Settings) -> tuple[ImageClassification, InputChange | None]:
        """Return the task of a model that was trained with other preprocessing.

        It gets the images of this task as they are, augmented or not, in its own size (resized
        bilinearly, with antialiasing), levels and order of channels.
        """
        given = self.preprocessing
        own = given.under(settings, given.fit)
        change = Adapted.between(given, own)
        return replace(self, built_for=own.size), change if change.changes else None

    def sight(
        self, settings: Settings, usual: Settings | None, splits: Sequence[Split]
    ) -> Sight | None:
        """Return how a model sees images whose files are decoded for it.

        Where its size, or how images come to it, is not this task's. Raises ValueError for such
        settings of images without files.
        """
        given, own = self.preprocessing, settings.over(usual or Settings())
        if given.fit is None or any(split.remade(given.fit) is None for split in splits):
            if names := settings.of_files:
                raise ValueError(
                    f"{', '.join(names)}: {self.name} has no image files that could be decoded "
                    f"otherwise. Give its size alone, to which images are resized"
                )
            return None
        own = own.over(given.levels()).over(given.fit.settings())
        # Whose images had their size already: those of this task get it, unless they have it too.
        asked = settings.resize is not None
        if (
            own.resize == "none"
            and not asked
            and (given.fit.resize, given.size)
            != (
                "none",
                own.size,
            )
        ):
            own = replace(own, resize="exact", to=own.size, crop_pct=None)
        fit = own.fit(given.size)
        if fit == given.fit:
            return None
        _, change = self.seen_by(own)
        seen = given.under(own, fit)
        task = replace(self, preprocessing=seen, origin="", drawn_for=given.size)
        sight = Sight(task, change, f"{seen.words()}, decoded for it")
        first = sight.of(splits[0])
        (samples,), _ = first.fetch(spaced(PROBED, len(first)))
        return replace(sight, task=replace(task, samples=samples))

    def remade(self, split: Split) -> Split | None:
        fit = self.preprocessing.fit
        return None if fit is None else split.remade(fit)

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
            inputs = augment_images(inputs, rng, self.augments, self.drawn_for)
        return (inputs,)

    def augment_raw(self, raw: Tensors, rng: StatelessRNG) -> Tensors:
        [images] = raw
        return (augment_photos(images, rng, self.augments, self.drawn_for),)

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
