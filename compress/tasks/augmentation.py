"""Augmentation of images for training: every view by its own draws.

A place in an image is drawn for a size, `drawn_for`, by default that of the images. Others of the
same items have it at the same shares of their sides, so they show the same views.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.stateless_rng import StatelessRNG

PHOTOS = ("resizedcrop", "jitter")
"""Augmentations of uint8 images, one after the other; the others are of normalised batches."""
AREA = (0.35, 1.0)
"""Of an image, that a resized crop keeps. torchvision's usual least is 0.08, for trainings of a
hundred epochs on photographs that are larger than the inputs; these have their size already."""
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
STRENGTH = 0.4
"""Brightness, contrast and saturation are multiplied by 1 - this to 1 + this."""
COLOURS = ("brightness", "contrast", "saturation")


Size = tuple[int, int]
"""Height and width in pixels."""


def augment_photos(
    images: Tensor, rng: StatelessRNG, augments: Sequence[str], drawn_for: Size | None = None
) -> Tensor:
    """Crop, resize and recolour uint8 images (N, C, H, W), each by its own draws, by torchvision.

    'resizedcrop' takes a part of the image of random area and shape and resizes it to the whole
    (Szegedy et al. 2014, section 6); 'jitter' changes brightness, contrast and saturation, in an
    order of its own (Howard 2013, section 2.3).
    """
    import torchvision.transforms.v2.functional as photo  # half a second, for photographs alone

    if "resizedcrop" in augments:
        height, width = images.shape[2:]
        boxes = _on_sides(_boxes(rng, *(drawn_for or (height, width))), (height, width), drawn_for)
        images = torch.stack(
            [
                photo.resized_crop(image, *box, size=[height, width], antialias=True)
                for image, box in zip(images, boxes, strict=True)
            ]
        )
    if "jitter" in augments:
        adjust = {name: getattr(photo, f"adjust_{name}") for name in COLOURS}
        images = torch.stack(
            [
                functools.reduce(lambda done, one: adjust[one[0]](done, one[1]), colours, image)
                for image, colours in zip(images, _colours(rng), strict=True)
            ]
        )
    return images


def _boxes(rng: StatelessRNG, height: int, width: int) -> list[list[int]]:
    """Return (top, left, height, width) of a part of each image, as torchvision draws it.

    The first of ten random areas and shapes that fit; if none does, the whole image.
    """
    boxes = torch.tensor([[0, 0, height, width]]).repeat(len(rng.items), 1)
    low, high = map(math.log, RATIO)
    for attempt in reversed(range(ATTEMPTS)):
        share = AREA[0] + (AREA[1] - AREA[0]) * rng.uniform(f"area-{attempt}")
        ratio = torch.exp(low + (high - low) * rng.uniform(f"ratio-{attempt}"))
        area = height * width * share
        tall, wide = (torch.sqrt(part).round().long() for part in (area / ratio, area * ratio))
        fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
        top = (rng.uniform(f"top-{attempt}") * (height - tall + 1)).long()
        left = (rng.uniform(f"left-{attempt}") * (width - wide + 1)).long()
        boxes = torch.where(fits[:, None], torch.stack([top, left, tall, wide], 1), boxes)
    return [list(map(int, box)) for box in boxes]


def _on_sides(boxes: list[list[int]], size: Size, drawn_for: Size | None) -> list[list[int]]:
    """Return the same parts, (top, left, height, width), of images of another size."""
    if drawn_for in (None, size):
        return boxes
    found = []
    for top, left, tall, wide in boxes:
        sides = zip((top, left), (tall, wide), size, drawn_for, strict=True)
        edges = [_scaled(torch.tensor([at, at + length]), *pair) for at, length, *pair in sides]
        (top, bottom), (left, right) = (edge.tolist() for edge in edges)
        found.append([top, left, max(1, bottom - top), max(1, right - left)])
    return found


def _scaled(place: Tensor, side: int, drawn: int) -> Tensor:
    """Return places on a side of `drawn` pixels as those on one of `side`, in whole pixels."""
    return (place * side / drawn).round().long()


def _colours(rng: StatelessRNG) -> list[list[tuple[str, float]]]:
    """Return for each image what of its colours changes, in which order, by which factor."""
    factors = [1 + STRENGTH * (2 * rng.uniform(name) - 1) for name in COLOURS]
    orders = torch.stack([rng.uniform(f"order-{name}") for name in COLOURS], 1).argsort(1)
    return [
        [(COLOURS[kind], values[kind]) for kind in order]
        for values, order in zip(torch.stack(factors, 1).tolist(), orders.tolist(), strict=True)
    ]


def augment_images(
    images: Tensor, rng: StatelessRNG, augments: Sequence[str], drawn_for: Size | None = None
) -> Tensor:
    """Mirror, shift and cut out of normalised images (N, C, H, W), each by its own draws.

    The draws are made on the CPU, where their items lie: a GPU would get dozens of tiny kernels.
    'flip' mirrors half of them; 'crop' shifts by up to an eighth of the side, with zeros beyond
    the border (He et al. 2015, section 4.2: 4 pixels of 32); 'cutout' sets a square of half the
    side to zero, centred anywhere (DeVries and Taylor 2017, section 3.2: 16 pixels of 32).
    """
    height, width = images.shape[2:]
    drawn = drawn_for or (height, width)
    if "flip" in augments or "crop" in augments:
        images = _shifted(images, rng, "flip" in augments, "crop" in augments, drawn)
    if "cutout" in augments:
        images = images * _holes(images, rng, drawn)
    return images


def _shifted(images: Tensor, rng: StatelessRNG, flip: bool, crop: bool, drawn: Size) -> Tensor:
    count, _, height, width = images.shape
    device = images.device
    begins, pads = [], []
    for purpose, side, drawn_side in zip(("top", "left"), (height, width), drawn, strict=True):
        most = max(1, drawn_side // 8) if crop else 0
        [pad] = _scaled(torch.tensor([most]), side, drawn_side).tolist()
        shift = _scaled(rng.below(purpose, 2 * most + 1) - most, side, drawn_side)
        begins.append((shift + pad).to(device, non_blocking=True))
        pads.append(pad)
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]))
    rows, columns = (
        begin[:, None] + torch.arange(side, device=device)
        for begin, side in zip(begins, (height, width), strict=True)
    )
    if flip:
        mirrored = (rng.uniform("flip") < 0.5).to(device, non_blocking=True)[:, None]
        columns = torch.where(mirrored, columns.flip(1), columns)
    item = torch.arange(count, device=device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _holes(images: Tensor, rng: StatelessRNG, drawn: Size) -> Tensor:
    """Return zero within a square of half the side and one elsewhere, (N, 1, H, W)."""
    inside = []
    for purpose, side, drawn_side in zip(
        ("hole-y", "hole-x"), images.shape[2:], drawn, strict=True
    ):
        half = max(1, drawn_side // 2)
        first = rng.below(purpose, drawn_side) - half // 2
        begin, end = (
            _scaled(edge, side, drawn_side).to(images.device, non_blocking=True)
            for edge in (first, first + half)
        )
        place = torch.arange(side, device=images.device)
        inside.append((place >= begin[:, None]) & (place < end[:, None]))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return (~hole[:, None]).to(images.dtype)
