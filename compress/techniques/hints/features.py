"""What layers inside a model give, and which of a teacher's and a student's go together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import IllegalChain, nearest
from compress.model import Model
from compress.tasks.base import Tensors

MOST_PAIRS = 4
"""Layers that are matched automatically."""


def recorded(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    """Return what every submodule gives for some inputs, by path, in the order of their calls.

    Only single tensors of the shape (N, C, H, W), (N, H, W, C) or (N, tokens, width) count as
    features, and channels are moved to the front; a submodule that is called several times is
    left out.
    """
    size = image_size(inputs)
    found: OrderedDict[str, Tensor] = OrderedDict()
    often: set[str] = set()
    handles = []
    for path, layer in module.named_modules():
        if not path:
            continue

        def note(_layer: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
            if path in found:
                often.add(path)
            if isinstance(output, Tensor) and output.ndim in (3, 4):
                found[path] = channels_first(output, size)

        handles.append(layer.register_forward_hook(note))
    device = next(module.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad():
            module(*(tensor.to(device) for tensor in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {path: output for path, output in found.items() if path not in often}


def image_size(inputs: Tensors) -> tuple[int, ...] | None:
    """Return height and width of the first input that is a batch of images."""
    return next((tuple(x.shape[2:]) for x in inputs if x.ndim == 4), None)


def channels_first(features: Tensor, size: tuple[int, ...] | None) -> Tensor:
    """Return features of images as (N, C, H, W); of Swin's layers they are (N, H, W, C).

    Which of the two they are shows in the proportions of the images, whose height and width are
    `size`. Where both orders suit them, channels are taken to come first.
    """
    if features.ndim != 4 or size is None or _suits(features.shape[2:], size):
        return features
    return features.permute(0, 3, 1, 2) if _suits(features.shape[1:3], size) else features


def _suits(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether one stride, rounded to a whole pixel, leads from an image's size to a grid."""
    strides = [
        (whole / (part + 1), whole / (part - 0.99)) for part, whole in zip(grid, size, strict=True)
    ]
    (low, high), (other_low, other_high) = strides
    return low < other_high and other_low < high


def matched(teacher: Model, student: Model) -> list[tuple[str, str]]:
    """Return pairs of (teacher's, student's) layers that see the same grid.

    Of images, the last layer of each at every height x width that both have and that is larger
    than one pixel, at most the four last ones; the first layers of a block that leads to another
    size do not count, though they are later than the end of the stage before. Of sequences of
    tokens, the ends of the four quarters of each one's widest repeated stack. Raises IllegalChain
    if there are none.
    """
    theirs = recorded(teacher.module, teacher.items())
    ours = recorded(student.module, student.items())
    last = [_ends(teacher.module, theirs), _ends(student.module, ours)]
    common = [grid for grid in last[0] if grid in last[1]]
    pairs = [(last[0][grid], last[1][grid]) for grid in common[-MOST_PAIRS:]]
    tokens = [_tokens(teacher.module, theirs), _tokens(student.module, ours)]
    if not pairs or (len(tokens[0]) > 1 and len(tokens[1]) > 1):
        parts = min(MOST_PAIRS, *(len(paths) for paths in tokens))
        pairs = [
            (_at(tokens[0], (part + 1) / parts), _at(tokens[1], (part + 1) / parts))
            for part in range(parts)
        ]
    if not pairs:
        raise IllegalChain(
            "no layer of the student has features of the same height and width as one of the "
            "teacher's: name the layers with layers=['teacher.layer:student.layer']"
        )
    return pairs


def _ends(module: nn.Module, features: Mapping[str, Tensor]) -> dict[tuple[int, ...], str]:
    """Return the layer in which every grid of more than one pixel ends, in order of appearance."""
    grids = {path: grid_of(value) for path, value in features.items() if value.ndim == 4}
    ends: dict[tuple[int, ...], str] = {}
    inside: dict[tuple[int, ...], str] = {}
    for path, grid in grids.items():
        if grid[0] * grid[1] == 1:
            continue
        parts = path.split(".")
        blocks = (".".join(parts[:count]) for count in range(1, len(parts)))
        others = any(
            grids.get(block, grid) != grid
            and not isinstance(module.get_submodule(block), nn.Sequential)
            for block in blocks
        )
        (inside if others else ends)[grid] = path
    found = dict.fromkeys(grid for grid in grids.values() if grid in ends or grid in inside)
    return {grid: ends.get(grid) or inside[grid] for grid in found}


def _tokens(module: nn.Module, features: Mapping[str, Tensor]) -> list[str]:
    """Return the longest stack of layers of one class that give tokens, the outermost of equals."""
    stacks: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for path, value in features.items():
        parent, _, _ = path.rpartition(".")
        if value.ndim == 3:
            stacks.setdefault((parent, type(module.get_submodule(path))), []).append(path)
    return max(stacks.values(), key=lambda paths: (len(paths), -paths[0].count(".")), default=[])


def _at(paths: Sequence[str], fraction: float) -> str:
    return paths[max(0, round(fraction * len(paths)) - 1)]


def named_pairs(texts: Sequence[str], teacher: Model, student: Model) -> list[tuple[str, str]]:
    """Return the pairs that texts of the form 'teacher.layer:student.layer' name."""
    pairs = []
    for text in texts:
        theirs, _, ours = text.partition(":")
        check_layer(theirs, teacher, "teacher")
        check_layer(ours, student, "student")
        pairs.append((theirs, ours))
    return pairs


def check_layer(path: str, model: Model, whose: str) -> None:
    """Raise IllegalChain if a model has no such layer."""
    known = [name for name, _ in model.module.named_modules() if name]
    if path not in known:
        raise IllegalChain(f"the {whose} has no layer {path!r}. {nearest(path, known)}")


def grid_of(features: Tensor) -> tuple[int, ...]:
    """Return height and width of features of images; of tokens, how many there are."""
    return tuple(features.shape[2:] if features.ndim == 4 else features.shape[1:2])
