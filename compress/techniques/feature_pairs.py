"""Features of layers inside a model, and which layers of teacher and student pair up."""

from __future__ import annotations

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
    """Return the output of every submodule for some inputs, by path, in the order of their calls.

    Only single tensors of the shape (N, C, H, W), (N, H, W, C) or (N, tokens, width) count as
    features, and channels are moved to the front; a submodule that is called several times is
    left out.
    """
    size = image_size(inputs)
    features: dict[str, Tensor] = {}
    repeated: set[str] = set()
    handles = []
    for path, layer in module.named_modules():
        if not path:
            continue

        def record(_layer: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
            if path in features:
                repeated.add(path)
            if isinstance(output, Tensor) and output.ndim in (3, 4):
                features[path] = channels_first(output, size)

        handles.append(layer.register_forward_hook(record))
    device = next(module.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad():
            module(*(tensor.to(device) for tensor in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {path: output for path, output in features.items() if path not in repeated}


def image_size(inputs: Tensors) -> tuple[int, ...] | None:
    """Return height and width of the first input that is a batch of images."""
    return next((tuple(x.shape[2:]) for x in inputs if x.ndim == 4), None)


def channels_first(features: Tensor, size: tuple[int, ...] | None) -> Tensor:
    """Return features of images as (N, C, H, W); those of Swin's layers are (N, H, W, C).

    Which of the two they are is recognised by the proportions of the images, whose height and
    width are `size`. Where both orders fit them, channels are taken to come first.
    """
    if features.ndim != 4 or size is None or _fits(features.shape[2:], size):
        return features
    return features.permute(0, 3, 1, 2) if _fits(features.shape[1:3], size) else features


def _fits(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether one stride, rounded to a whole pixel, leads from an image's size to a grid."""
    strides = [
        (whole / (part + 1), whole / (part - 0.99)) for part, whole in zip(grid, size, strict=True)
    ]
    (low, high), (other_low, other_high) = strides
    return low < other_high and other_low < high


def matched(teacher: Model, student: Model) -> list[tuple[str, str]]:
    """Return pairs of (teacher's, student's) layers whose features lie on the same grid.

    Of images, the last layer of each at every height x width that both have and that is larger
    than one pixel, at most the four last ones; the first layers of a block that leads to another
    size do not count, though they are later than the end of the stage before. Of sequences of
    tokens, the ends of the four quarters of each one's widest repeated stack. Raises IllegalChain
    if there are none.
    """
    models = (teacher, student)
    features = [recorded(model.module, model.items()) for model in models]
    ends = [_ends(m.module, f) for m, f in zip(models, features, strict=True)]
    common = [grid for grid in ends[0] if grid in ends[1]]
    pairs = [(ends[0][grid], ends[1][grid]) for grid in common[-MOST_PAIRS:]]
    stacks = [_token_stack(m.module, f) for m, f in zip(models, features, strict=True)]
    shorter = min(map(len, stacks))
    if not pairs or shorter > 1:
        count = min(MOST_PAIRS, shorter)
        at_ends = [
            [stack[max(0, round((i + 1) / count * len(stack)) - 1)] for i in range(count)]
            for stack in stacks
        ]
        pairs = list(zip(*at_ends, strict=True))
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
    """Layers of a block that leads to another size: the end only where there is no other."""
    for path, grid in grids.items():
        if grid[0] * grid[1] == 1:
            continue
        names = path.split(".")
        blocks = (".".join(names[:count]) for count in range(1, len(names)))
        resized = any(
            grids.get(block, grid) != grid
            and not isinstance(module.get_submodule(block), nn.Sequential)
            for block in blocks
        )
        (inside if resized else ends)[grid] = path
    order = dict.fromkeys(grid for grid in grids.values() if grid in ends or grid in inside)
    return {grid: ends.get(grid) or inside[grid] for grid in order}


def _token_stack(module: nn.Module, features: Mapping[str, Tensor]) -> list[str]:
    """Return the longest stack of layers of one class that give tokens, the outermost of equals."""
    stacks: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for path, value in features.items():
        parent, _, _ = path.rpartition(".")
        if value.ndim == 3:
            stacks.setdefault((parent, type(module.get_submodule(path))), []).append(path)
    return max(stacks.values(), key=lambda paths: (len(paths), -paths[0].count(".")), default=[])


def check_layer(path: str, model: Model, role: str) -> None:
    """Raise IllegalChain if a model (the 'teacher' or 'student') has no such layer."""
    known = [name for name, _ in model.module.named_modules() if name]
    if path not in known:
        raise IllegalChain(f"the {role} has no layer {path!r}. {nearest(path, known)}")


def grid_of(features: Tensor) -> tuple[int, ...]:
    """Return height and width of features of images; of tokens, how many there are."""
    return tuple(features.shape[2:] if features.ndim == 4 else features.shape[1:2])
