"""Distillation of features: what layers inside student and teacher give, beside the logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import IllegalChain, nearest
from compress.model import Model
from compress.tasks.base import Tensors

HINTS = ("none", "fitnets", "attention")
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
            "teacher's: name the layers with hint_layers=['teacher.layer:student.layer']"
        )
    return pairs


def _ends(module: nn.Module, features: Mapping[str, Tensor]) -> dict[tuple[int, ...], str]:
    """Return the layer in which every grid of more than one pixel ends, in order of appearance."""
    grids = {path: _grid(value) for path, value in features.items() if value.ndim == 4}
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


class Hints(nn.Module):
    """The mean loss over pairs of layers; a projection for each pair is trained along.

    'fitnets': the squared difference between the teacher's features and a learnt 1x1 convolution
    of the student's (Romero et al. 2015, equation 3; of tokens, a linear map), averaged over all
    values. 'attention': the squared distance of the attention maps, the sum of squares over
    channels scaled to length one (Zagoruyko and Komodakis 2017, equation 2 with p = 2, the norm
    squared as in their code).
    """

    def __init__(
        self, kind: str, pairs: Sequence[tuple[str, str]], teacher: Model, student: Model
    ) -> None:
        super().__init__()
        self.kind = kind
        self.pairs = list(pairs)
        self.projections = nn.ModuleList()
        theirs = recorded(teacher.module, teacher.items())
        ours = recorded(student.module, student.items())
        for one, other in pairs:
            for path, features, whose in ((one, theirs, "teacher"), (other, ours, "student")):
                if path not in features:
                    raise IllegalChain(
                        f"layer {path!r} of the {whose} gives no single tensor of features "
                        f"(N, C, H, W), (N, H, W, C) or (N, tokens, width) in a pass"
                    )
            self.projections.append(self._projection(one, theirs[one], other, ours[other]))
        self.sizes = [image_size(model.example) for model in (teacher, student)]
        self.caught: list[dict[str, Tensor]] = [{}, {}]
        self.handles = []
        for number, model in enumerate((teacher, student)):
            # A pass that ran out of memory must not hold on to its graph while it is repeated.
            self.handles.append(model.module.register_forward_pre_hook(self._forget(number)))
            for pair in self.pairs:
                layer = model.module.get_submodule(pair[number])
                self.handles.append(layer.register_forward_hook(self._catch(number, pair)))

    def _projection(self, one: str, theirs: Tensor, other: str, ours: Tensor) -> nn.Module:
        grids = [_grid(value) for value in (theirs, ours)]
        if theirs.ndim != ours.ndim or grids[0] != grids[1]:
            raise IllegalChain(
                f"the features of {one!r} and {other!r} lie on different grids: {grids[0]} and "
                f"{grids[1]}"
            )
        if self.kind == "attention":
            return nn.Identity()
        if theirs.ndim == 3:
            return nn.Linear(ours.shape[2], theirs.shape[2])
        return nn.Conv2d(ours.shape[1], theirs.shape[1], 1)

    def _forget(self, whose: int) -> Any:
        def forget(_module: nn.Module, _inputs: Any) -> None:
            self.caught[whose].clear()

        return forget

    def _catch(self, whose: int, pair: tuple[str, str]) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A copy: a layer behind it may work in place, as torchvision's ReLUs do.
            self.caught[whose][pair[whose]] = channels_first(output.clone(), self.sizes[whose])

        return note

    def value(self) -> Tensor:
        """Return the loss for what both have just given for the same inputs."""
        total = torch.zeros((), device=next(iter(self.caught[1].values())).device)
        for (one, other), projection in zip(self.pairs, self.projections, strict=True):
            theirs, ours = self.caught[0][one].float(), self.caught[1][other].float()
            if self.kind == "attention":
                total = total + (attention(ours) - attention(theirs)).square().sum(1).mean()
            else:
                total = total + F.mse_loss(projection(ours), theirs)
        for caught in self.caught:
            caught.clear()
        return total / len(self.pairs)

    def remove(self) -> None:
        """Take the hooks out of teacher and student."""
        for handle in self.handles:
            handle.remove()


def _grid(features: Tensor) -> tuple[int, ...]:
    return tuple(features.shape[2:] if features.ndim == 4 else features.shape[1:2])


def attention(features: Tensor) -> Tensor:
    """Return each item's map of energy over places, (N, places), of length one."""
    channels = 1 if features.ndim == 4 else 2
    return F.normalize(features.square().mean(channels).flatten(1), dim=1)
