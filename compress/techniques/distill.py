"""Knowledge distillation: a student learns from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compress.compressor import Compressor, require
from compress.context import StepContext
from compress.ensemble import AVERAGES
from compress.errors import IllegalChain, unknown
from compress.int8.calibration import Calibration
from compress.int8.settings import Planned
from compress.int8.simulated import Simulation
from compress.model import Model
from compress.parts import (
    Choices,
    Students,
    a_name,
    are_names,
    is_number,
    one_of,
    positive_or_zero,
    rule,
    searched,
    takes,
    whole_number,
)
from compress.tasks.base import Split, arrangement
from compress.techniques.flat_options import with_parts
from compress.techniques.hints import Hint, HintLoss, hints
from compress.techniques.losses import SHAPES, Kd, Loss, between, losses
from compress.techniques.soft_labels import SoftLabels
from compress.techniques.teachers import BASELINE, INPUT, Teacher, check_pair, known_teachers
from compress.techniques.train import fresh_model, reborn
from compress.techniques.untrained import Untrained
from compress.training import Batch, Training, TrainingHooks, fit
from compress.training import Loss as BatchLoss

SAME = "same"


def _teaches(value: object) -> bool:
    return isinstance(value, str) or (are_names(value) and value != ())


def _settles(value: object) -> bool:
    return isinstance(value, Planned) and isinstance(value, Compressor) and bool(value.needs)


def _are_numbers(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_number, value))


@dataclass(frozen=True, repr=False)
class Distill(Training):
    """Train a student, or the model itself, on a teacher's outputs (Hinton et al. 2015).

    Minimises hard_weight · cross-entropy + the sum of weight · loss + weight of the hints · hints.

    - `student`: a fresh model of that name; 'same': the architecture that enters, with fresh
      weights (born again, Furlanello et al. 2018); without one, the model that enters learns on.
    - `teacher`: 'baseline', 'input' (the model that enters), a model that the suite names, or a
      list of these: an ensemble, whose 'probabilities' or 'logits' are averaged (`average`),
      weighted by `teacher_weights`.
    - `loss`: a loss, by name or with its options, such as `dkd(beta=1.0)`, or a list of them;
      `[]` for none, where only hints come from the teacher.
    - With `annealing` ('linear', 'cosine') the losses fade out, and the weight of the hard one
      moves to `final_hard_weight`, by default its own plus theirs (Clark et al. 2019,
      section 3.2).
    - `hints`: 'fitnets', 'attention', or one with its options, such as `fitnets(weight=10.0)`.
    - `transfer`: a data source whose images take the place of the training data, labelled or not.
    - `views`: how many augmented views of each item there are, shown in turns, an epoch each; by
      default every epoch has its own. The teacher's answers for a view are kept and reused; with 0
      it is asked each time.
    - `quantization_aware`: the `quantize(...)` that follows. Products are rounded in training as it
      rounds them, so that it loses less; the weights that come out lie on its grids, and the ranges
      travel with them.
    """

    student: str | None = field(default=None, metadata={**a_name(), **searched(Students())})
    teacher: str | tuple[str, ...] = field(
        default=BASELINE, metadata=rule("is a name or a list of names", _teaches)
    )
    loss: Loss | tuple[Loss, ...] = field(
        default=Kd(),
        metadata={
            **takes(Loss, losses, several=True),
            **searched(Choices(("kd", "dkd", "dist"))),
        },
    )
    hard_weight: float = field(default=0.1, metadata=positive_or_zero())
    annealing: str = field(default="constant", metadata=one_of(*SHAPES))
    final_hard_weight: float | None = field(default=None, metadata=positive_or_zero())
    average: str = field(default="probabilities", metadata=one_of(*AVERAGES))
    teacher_weights: tuple[float, ...] = field(
        default=(), metadata=rule("is a list of numbers", _are_numbers)
    )
    hints: Hint | None = field(default=None, metadata=takes(Hint, hints))
    transfer: str | None = field(default=None, metadata=a_name())
    views: int | None = field(default=None, metadata=whole_number(least=0))
    quantization_aware: Compressor | None = field(
        default=None,
        metadata=rule("is a quantize(...) with settled ranges", _settles),
    )

    @classmethod
    def modernized(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_parts(options, cls.hard_weight)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_teachers()
        self._check_weights()

    def _check_teachers(self) -> None:
        count, weights = len(self.teacher_names), self.teacher_weights
        if count == 1:
            require(not weights, self, "teacher_weights needs several teachers")
            require(self.average == "probabilities", self, "average needs several teachers")
            return
        if weights:
            what = f"teacher_weights are {count} positive numbers, one a teacher"
            require(len(weights) == count and all(w > 0 for w in weights), self, what)
        for loss in self.losses:
            possible = not loss.wants_logits or self.average == "logits"
            what = f"{loss.name()}() learns from several teachers with average='logits'"
            require(possible, self, what)
        require(self.hints is None, self, "hints come from one teacher, not from an ensemble")

    def _check_weights(self) -> None:
        learns = bool(self.losses) or self.hints is not None
        require(learns, self, "nothing is learnt from the teacher: that is train() or finetune()")
        different = {repr(replace(loss, weight=1.0)) for loss in self.losses}
        once = len(different) == len(self.losses)
        require(once, self, "two of the losses differ in their weight alone: add it up in one")
        if self.annealing == "constant":
            unset = self.final_hard_weight is None
            require(unset, self, "final_hard_weight needs annealing='linear' or 'cosine'")
            return
        require(bool(self.losses), self, "annealing fades out losses, and there are none")
        stays = self.final_hard_weight != 0 or self.hints is not None
        require(stays, self, "annealing fades out all there is to learn: set a final_hard_weight")

    @property
    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,) if isinstance(self.loss, Loss) else self.loss

    @property
    def hard_gain(self) -> float:
        """How much weight the hard loss gains while the others fade out."""
        if self.annealing == "constant":
            return 0.0
        if self.final_hard_weight is not None:
            return self.final_hard_weight - self.hard_weight
        return sum(loss.weight for loss in self.losses)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return self.student is not None and INPUT not in self.teacher_names

    @property
    def builds(self) -> bool:
        return self.student is not None

    @property
    def discards(self) -> bool:
        # A student born again has the architecture that enters, however it came about.
        return self.restarts and self.student != SAME

    @property
    def wants_labels(self) -> bool:
        """Whether the loss uses labels at any time."""
        hard = self.hard_weight > 0 or self.hard_gain > 0
        return hard or any(loss.wants_labels for loss in self.losses)

    @property
    def needs(self) -> frozenset[str]:
        needs = super().needs | ({"labels"} if self.wants_labels else set())
        if self.transfer is not None:
            needs -= {"train", "labels"}
        if self.quantization_aware is not None:
            needs |= self.quantization_aware.needs
        return needs | ({"teacher"} if BASELINE in self.teacher_names else set())

    @property
    def students(self) -> frozenset[str]:
        return frozenset() if self.student in (None, SAME) else frozenset({str(self.student)})

    @property
    def teachers(self) -> frozenset[str]:
        return frozenset(self.teacher_names) - {INPUT}

    @property
    def transfers(self) -> frozenset[str]:
        return frozenset() if self.transfer is None else frozenset({self.transfer})

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        return (Untrained(student=str(self.student)),) if self.students else ()

    def learner(self, context: StepContext) -> Model | None:
        return context.student(str(self.student)) if self.students else context.enters

    def check(self, context: StepContext) -> None:
        super().check(context)
        self._check_hints(context)
        for loss in self.losses:
            if loss.wants_single_classes and context.task.mixes:
                raise IllegalChain(
                    f"distill: {loss.name()}() needs each item's class, and mixup gives "
                    f"mixtures of two: use another loss, or data without mixup"
                )
        if self.transfer is None:
            return
        if self.transfer not in context.transfers:
            raise unknown("transfer set", self.transfer, context.transfers)
        if self.wants_labels and not context.transfers[self.transfer].labelled:
            raise IllegalChain(
                f"distill: the transfer set {self.transfer} has no labels of this task's classes, "
                f"and hard_weight, annealing and losses such as dkd() need labels: set "
                f"hard_weight=0 and leave out the others"
            )

    def _check_hints(self, context: StepContext) -> None:
        """Refuse hints whose layers do not exist, where the models are known beforehand."""
        if self.hints is None:
            return
        [name] = self.teacher_names
        teacher = known_teachers(context, context.enters).get(name)
        if teacher is None:
            return
        with torch.random.fork_rng(devices=[]):
            teacher, student = teacher.copy(), self.learner(context)
            if student is None:
                self.hints.check_teacher(teacher)
            else:
                HintLoss(self.hints, teacher, student.copy())

    def compress(self, model: Model, context: StepContext) -> Model:
        known = known_teachers(context, model)
        for name in self.teacher_names:
            if name not in known:
                raise unknown("teacher", name, known)
        models = [known[name] for name in self.teacher_names]
        student = self._student(model, context)
        for one in models:
            check_pair(one, student)
        transfer = None if self.transfer is None else context.transfers[self.transfer]
        split = context.train if transfer is None else transfer.items
        assert split is not None, "run() has checked needs"
        teacher = Teacher(models, context, self.average, self.teacher_weights, split)
        hints = None
        if self.hints is not None:
            hints = HintLoss(self.hints, teacher.models[0], student)
            context.log.row("hints", pairs=[list(pair) for pair in hints.pairs])
        if (self.views or 0) > 1 and not context.task.augmented:
            context.log.note(f"views={self.views}: without augmentation all views look the same")
        labels = self._labels(teacher, context, split)
        rounding = self._rounding(student, context)

        def before(view: int) -> None:
            labels.before(view)
            if rounding is not None:
                rounding.observe()

        hooks = TrainingHooks(
            split=split,
            extra=hints,
            view=lambda epoch: epoch % self._views(context),
            before=before,
            after=labels.after,
            readers=lambda: teacher.ready(labels.asking_epochs) if labels.asks else (),
            traced=hints is None and rounding is None,
            labelled=transfer is None or transfer.labelled,
            label_weight=self._hard_weight,
            about={"teacher": teacher.identity()},
            nan_reason=labels.nan_reason,
        )
        try:
            trained = fit(student, context, self, self._loss(labels, hints, context), hooks)
            if rounding is not None:
                trained = replace(trained, hints=rounding.settle())
                if untouched := rounding.untouched:
                    context.log.note(
                        f"quantization_aware: {len(untouched)} layer(s) were not rounded in "
                        f"training: {', '.join(untouched[:5])}"
                        f"{', ...' if len(untouched) > 5 else ''}"
                    )
        finally:
            if rounding is not None:
                rounding.remove()
            if hints is not None:
                hints.remove()
            teacher.forget()
        labels.write_log()
        return trained

    def _rounding(self, student: Model, context: StepContext) -> Simulation | None:
        plan = self.quantization_aware
        if plan is None:
            return None
        assert isinstance(plan, Planned), "the field's rule has checked that"
        items = Calibration(context.task, context.calibration_items(plan.calibration))
        left, bits = plan.layers_left(student), plan.layer_bits(student)
        return Simulation(student.module, plan.settings, items, left, bits)

    def _student(self, model: Model, context: StepContext) -> Model:
        if self.student is None:
            return model
        if self.student == SAME:
            return reborn(model, context)
        return fresh_model(self.student, model, context)

    def _views(self, context: StepContext) -> int:
        """Return how many augmented views there are: without augmentation all look the same."""
        return (self.views or self.epochs) if context.task.augmented else 1

    def _labels(self, teacher: Teacher, context: StepContext, split: Split) -> SoftLabels:
        key = {
            "teacher": teacher.identity(),
            "transfer": self.transfer and context.transfers[self.transfer].fingerprint,
            "items": arrangement(split),
            # Sums within a batch are rounded otherwise in batches of another size or order.
            "batches": [self.batch_size, context.seed],
        }
        return SoftLabels(
            lambda batch: teacher.ask(teacher.inputs(batch)),
            context,
            key,
            items=len(split),
            views=self._views(context),
            epochs=self.epochs,
            # Hints need the layers inside the teacher, so it answers in any case.
            keep=self.hints is None and self.views != 0,
            limited=self.views is None,
        )

    def _hard_weight(self, progress: float) -> float:
        """Return the weight of the hard loss: it gains what the soft ones lose by annealing."""
        share = between(1.0, 0.0, self.annealing, progress)
        return self.hard_weight + (1 - share) * self.hard_gain

    def _loss(self, labels: SoftLabels, hints: HintLoss | None, context: StepContext) -> BatchLoss:
        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            answers = labels(batch)
            share = between(1.0, 0.0, self.annealing, batch.progress)
            hard_weight = self._hard_weight(batch.progress)
            value = outputs.new_zeros(())
            for part in self.losses:
                if share > 0:
                    soft = part(outputs, answers, batch.targets, batch.progress)
                    value = value + part.weight * share * soft
            if hard_weight > 0:
                value = value + hard_weight * context.task.loss(outputs, batch.targets)
            if hints is not None:
                value = value + hints.hint.weight * hints.value()
            return value

        return loss
