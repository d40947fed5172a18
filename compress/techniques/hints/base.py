"""What a hint is: something to learn from the layers inside a teacher, beside its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.compressor import require, require_positive
from compress.errors import IllegalChain
from compress.model import Model
from compress.parts import Part
from compress.techniques.hints import features


@dataclass(frozen=True, repr=False, kw_only=True)
class Hint(Part, ABC):
    """How far features inside a student are from its teacher's, averaged over pairs of layers.

    `weight` is its share of what is minimised. `layers` names the pairs as
    'teacher.layer:student.layer'; without them those that match by themselves are taken.
    """

    weight: float = 1.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "weight")
        layers = self.layers
        require(isinstance(layers, (list, tuple)), self, f"layers is a list, not {layers!r}")
        sound = all(
            isinstance(text, str) and text.count(":") == 1 and all(text.split(":"))
            for text in layers
        )
        require(sound, self, "layers are texts such as 'layer1:features.3'")
        object.__setattr__(self, "layers", tuple(layers))

    def projection(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """Return what is trained along for a pair, given features of both; by default nothing.

        It maps the student's features, (N, C, H, W) or (N, tokens, width), to what is compared.
        """
        return nn.Identity()

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return a scalar, the mean over the batch, of projected and of the teacher's features."""

    def pairs(self, teacher: Model, student: Model) -> list[tuple[str, str]]:
        """Return the (teacher's, student's) layers; raise IllegalChain if one is not there."""
        if self.layers:
            return features.named_pairs(self.layers, teacher, student)
        return features.matched(teacher, student)

    def check_teacher(self, teacher: Model) -> None:
        """Raise IllegalChain if a layer is not in the teacher, where no student is known yet."""
        for text in self.layers:
            features.check_layer(text.partition(":")[0], teacher, "teacher")


class HintLoss(nn.Module):
    """The mean distance over pairs of layers; a projection for each pair is trained along."""

    def __init__(self, hint: Hint, teacher: Model, student: Model) -> None:
        super().__init__()
        self.hint = hint
        self.pairs = hint.pairs(teacher, student)
        self.projections = nn.ModuleList()
        theirs = features.recorded(teacher.module, teacher.items())
        ours = features.recorded(student.module, student.items())
        for one, other in self.pairs:
            for path, given, whose in ((one, theirs, "teacher"), (other, ours, "student")):
                if path not in given:
                    raise IllegalChain(
                        f"layer {path!r} of the {whose} gives no single tensor of features "
                        f"(N, C, H, W), (N, H, W, C) or (N, tokens, width) in a pass"
                    )
            self.projections.append(self._projection(one, theirs[one], other, ours[other]))
        self.sizes = [features.image_size(model.example) for model in (teacher, student)]
        self.caught: list[dict[str, Tensor]] = [{}, {}]
        self.handles = []
        for number, model in enumerate((teacher, student)):
            # A pass that ran out of memory must not hold on to its graph while it is repeated.
            self.handles.append(model.module.register_forward_pre_hook(self._forget(number)))
            for pair in self.pairs:
                layer = model.module.get_submodule(pair[number])
                self.handles.append(layer.register_forward_hook(self._catch(number, pair)))

    def _projection(self, one: str, theirs: Tensor, other: str, ours: Tensor) -> nn.Module:
        grids = [features.grid_of(value) for value in (theirs, ours)]
        if theirs.ndim != ours.ndim or grids[0] != grids[1]:
            raise IllegalChain(
                f"the features of {one!r} and {other!r} lie on different grids: {grids[0]} and "
                f"{grids[1]}"
            )
        return self.hint.projection(ours, theirs)

    def _forget(self, whose: int) -> Any:
        def forget(_module: nn.Module, _inputs: Any) -> None:
            self.caught[whose].clear()

        return forget

    def _catch(self, whose: int, pair: tuple[str, str]) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A copy: a layer behind it may work in place, as torchvision's ReLUs do.
            self.caught[whose][pair[whose]] = features.channels_first(
                output.clone(), self.sizes[whose]
            )

        return note

    def value(self) -> Tensor:
        """Return the loss for what both have just given for the same inputs."""
        total = torch.zeros((), device=next(iter(self.caught[1].values())).device)
        for (one, other), projection in zip(self.pairs, self.projections, strict=True):
            theirs, ours = self.caught[0][one].float(), self.caught[1][other].float()
            total = total + self.hint.distance(projection(ours), theirs)
        for caught in self.caught:
            caught.clear()
        return total / len(self.pairs)

    def remove(self) -> None:
        """Take the hooks out of teacher and student."""
        for handle in self.handles:
            handle.remove()
