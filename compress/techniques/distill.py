"""Knowledge distillation: a student learns from a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.compressor import Workbench, is_number, require, require_choice, require_name
from compress.errors import IllegalChain, unknown
from compress.model import Model, forward, main_output
from compress.task import Tensors
from compress.techniques.losses import SOFT_LOSSES
from compress.training import Loss, Training, autocast, fit, to_device


@dataclass(frozen=True, repr=False)
class Distill(Training):
    """Train a student, or the model itself, on a teacher's outputs (Hinton et al. 2015).

    Minimises hard_weight · cross-entropy + soft_weight · soft loss.

    The student is a fresh model of the given name, or without one the model that enters the
    step, with its weights. The teacher is `'baseline'`, `'input'` (the model that enters), or a
    model that the suite names. `loss` is `'kd'` (softened probabilities, with `temperature`) or
    `'logits'` (squared difference).
    """

    student: str | None = None
    teacher: str = "baseline"
    loss: str = "kd"
    temperature: float = 4.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self, "student")
        require(isinstance(self.teacher, str), self, f"teacher is a name, not {self.teacher!r}")
        require_choice(self, "loss", tuple(SOFT_LOSSES))
        heat = self.temperature
        require(is_number(heat) and heat > 0, self, f"temperature must be positive, not {heat!r}")
        for name in ("hard_weight", "soft_weight"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, self, f"{name} must be >= 0, not {value!r}")
        require(self.soft_weight > 0, self, "soft_weight is 0: that is train() or finetune()")

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return self.student is not None and self.teacher != "input"

    @property
    def needs(self) -> frozenset[str]:
        extra = {"labels"} if self.hard_weight > 0 else set()
        extra |= {"teacher"} if self.teacher == "baseline" else set()
        return super().needs | extra

    @property
    def students(self) -> frozenset[str]:
        return frozenset() if self.student is None else frozenset({self.student})

    @property
    def teachers(self) -> frozenset[str]:
        return frozenset() if self.teacher == "input" else frozenset({self.teacher})

    def compress(self, model: Model, bench: Workbench) -> Model:
        teacher = self._teacher(model, bench).copy()
        student = model if self.student is None else bench.student(self.student)
        check_pair(teacher, student)
        module = to_device(teacher.module, bench).eval().requires_grad_(False)
        return fit(student, bench, self, self._loss(module, bench))

    def _teacher(self, model: Model, bench: Workbench) -> Model:
        if self.teacher == "input":
            return model
        if self.teacher == "baseline":
            assert bench.teacher is not None, "run() has checked needs"
            return bench.teacher
        if self.teacher not in bench.models:
            raise unknown("teacher", self.teacher, ["baseline", "input", *bench.models])
        return bench.models[self.teacher]

    def _loss(self, teacher: nn.Module, bench: Workbench) -> Loss:
        soft = SOFT_LOSSES[self.loss]

        def loss(outputs: Tensor, targets: Tensor, inputs: Tensors) -> Tensor:
            with torch.no_grad(), autocast(bench):
                taught = main_output(teacher(*inputs)).float()
            value = self.soft_weight * soft(outputs, taught, self.temperature)
            if self.hard_weight > 0:
                value = value + self.hard_weight * bench.task.loss(outputs, targets)
            return value

        return loss


def check_pair(teacher: Model, student: Model) -> None:
    """Refuse a student whose outputs have another shape than the teacher's."""
    taught = forward(teacher.module, teacher.example).shape
    learnt = forward(student.module.eval(), teacher.example).shape
    if taught != learnt:
        raise IllegalChain(
            f"the student has {learnt[-1]} outputs and the teacher {taught[-1]}: both need one "
            f"for every class of the task"
        )
