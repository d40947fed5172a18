"""Hints: what a student learns from the layers inside its teacher, beside the answers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import IllegalChain
from compress.model import Model
from compress.parts import Part, by_name, positive, rule
from compress.techniques import feature_pairs


def _are_pairs(layers: Any) -> bool:
    return isinstance(layers, tuple) and all(
        isinstance(text, str) and text.count(":") == 1 and all(text.split(":")) for text in layers
    )


@dataclass(frozen=True, repr=False, kw_only=True)
class Hint(Part, ABC):
    """The distance of features inside a student from its teacher's, averaged over pairs of layers.

    `weight` is its share of what is minimised. `layers` names the pairs as
    'teacher.layer:student.layer'; without them, layers are matched automatically.
    """

    weight: float = field(default=1.0, metadata=positive())
    layers: tuple[str, ...] = field(
        default=(), metadata=rule("is a list of texts such as 'layer1:features.3'", _are_pairs)
    )

    def projection(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """Return what is trained along for a pair, given features of both; by default nothing.

        It maps the student's features, (N, C, H, W) or (N, tokens, width), to what is compared.
        """
        return nn.Identity()

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return a scalar, the mean over the batch, of projected and of the teacher's features."""

    def pairs(self, teacher: Model, student: Model) -> list[tuple[str, str]]:
        """Return the (teacher's, student's) layers; raise IllegalChain if one does not exist."""
        if not self.layers:
            return feature_pairs.matched(teacher, student)
        self.check_teacher(teacher)
        pairs = []
        for text in self.layers:
            teachers, _, students = text.partition(":")
            feature_pairs.check_layer(students, student, "student")
            pairs.append((teachers, students))
        return pairs

    def check_teacher(self, teacher: Model) -> None:
        """Raise IllegalChain if a layer is not in the teacher, where no student is known yet."""
        for text in self.layers:
            feature_pairs.check_layer(text.partition(":")[0], teacher, "teacher")


@dataclass(frozen=True, repr=False, kw_only=True)
class Fitnets(Hint):
    """Mean of (learnt 1x1 convolution of the student's features - the teacher's)².
    Romero et al. 2015, equation 3; of tokens, a linear map.
    """

    def projection(self, student: Tensor, teacher: Tensor) -> nn.Module:
        if teacher.ndim == 3:
            return nn.Linear(student.shape[2], teacher.shape[2])
        return nn.Conv2d(student.shape[1], teacher.shape[1], 1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)


@dataclass(frozen=True, repr=False, kw_only=True)
class Attention(Hint):
    """Squared distance of attention maps: the sums of squares over channels, scaled to length one.
    Zagoruyko and Komodakis 2017, equation 2 with p = 2, the norm squared as in their code.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (attention(student) - attention(teacher)).square().sum(1).mean()


def attention(features: Tensor) -> Tensor:
    """Return each item's map of energy over places, (N, places), of length one."""
    channels = 1 if features.ndim == 4 else 2
    return F.normalize(features.square().mean(channels).flatten(1), dim=1)


BUILT_IN: tuple[type[Hint], ...] = (Fitnets, Attention)


@functools.cache
def hints() -> Mapping[str, type[Hint]]:
    """Return every hint by its name in chain text: entry points `compress.hints` included."""
    return by_name(Hint, "compress.hints", BUILT_IN)


class HintLoss(nn.Module):
    """The mean distance over pairs of layers; a projection for each pair is trained along."""

    def __init__(self, hint: Hint, teacher: Model, student: Model) -> None:
        super().__init__()
        self.hint = hint
        self.pairs = hint.pairs(teacher, student)
        models = {"teacher": teacher, "student": student}
        features = [feature_pairs.recorded(m.module, m.items()) for m in models.values()]
        self.projections = nn.ModuleList()
        for pair in self.pairs:
            for path, role, recorded in zip(pair, models, features, strict=True):
                if path not in recorded:
                    raise IllegalChain(
                        f"layer {path!r} of the {role} gives no single tensor of features "
                        f"(N, C, H, W), (N, H, W, C) or (N, tokens, width) in a pass"
                    )
            of_teacher, of_student = features[0][pair[0]], features[1][pair[1]]
            grids = [feature_pairs.grid_of(of_teacher), feature_pairs.grid_of(of_student)]
            if of_teacher.ndim != of_student.ndim or grids[0] != grids[1]:
                raise IllegalChain(
                    f"the features of {pair[0]!r} and {pair[1]!r} lie on different grids: "
                    f"{grids[0]} and {grids[1]}"
                )
            self.projections.append(hint.projection(of_student, of_teacher))
        self.handles: list[Any] = []
        self.of_teacher = self._latest(teacher, (path for path, _ in self.pairs))
        self.of_student = self._latest(student, (path for _, path in self.pairs))

    def _latest(self, model: Model, paths: Iterable[str]) -> dict[str, Tensor]:
        """Return a dictionary that always holds the features of the latest pass, by path."""
        latest: dict[str, Tensor] = {}
        size = feature_pairs.image_size(model.example)

        def record(path: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A copy: a layer behind it may work in place, as torchvision's ReLUs do.
            latest[path] = feature_pairs.channels_first(output.clone(), size)

        # A pass that ran out of memory must not hold on to its graph while it is repeated.
        self.handles.append(model.module.register_forward_pre_hook(lambda *_: latest.clear()))
        for path in paths:
            layer = model.module.get_submodule(path)
            self.handles.append(layer.register_forward_hook(partial(record, path)))
        return latest

    def value(self) -> Tensor:
        """Return the loss of the features that both have just computed for the same inputs."""
        total = torch.zeros((), device=next(iter(self.of_student.values())).device)
        for (one, other), projection in zip(self.pairs, self.projections, strict=True):
            teacher, student = self.of_teacher[one].float(), self.of_student[other].float()
            total = total + self.hint.distance(projection(student), teacher)
        self.of_teacher.clear()
        self.of_student.clear()
        return total / len(self.pairs)

    def remove(self) -> None:
        """Take the hooks out of teacher and student."""
        for handle in self.handles:
            handle.remove()
