"""Knowledge distillation: a student learns from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.compressor import (
    is_number,
    require,
    require_choice,
    require_count,
    require_name,
    require_positive,
)
from compress.context import StepContext
from compress.ensemble import AVERAGES
from compress.errors import IllegalChain, unknown
from compress.model import Model
from compress.parts import settle, takes
from compress.tasks.base import Split, arrangement
from compress.techniques.flat_options import with_parts
from compress.techniques.hints import Hint, hints
from compress.techniques.hints.base import HintLoss
from compress.techniques.losses import Kd, Loss, losses
from compress.techniques.schedules import SHAPES, between
from compress.techniques.soft_labels import Showing, SoftLabels
from compress.techniques.teachers import BASELINE, INPUT, Teacher, check_pair, find_teachers
from compress.techniques.train import fresh_model, same_again
from compress.training import Batch, Training, TrainingHooks, fit
from compress.training import Loss as BatchLoss

SAME = "same"


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
      `[]` for none, where hints are all that the teacher gives.
    - With `annealing` ('linear', 'cosine') the losses fade out, and the hard one comes to
      `final_hard_weight`, by default what it has and what they lose (Clark et al. 2019,
      section 3.2).
    - `hints`: 'fitnets', 'attention', or one with its options, such as `fitnets(weight=10.0)`.
    - `transfer`: a data source whose images take the place of the training data, labelled or not.
    - `views`: how many augmented views of each item there are, shown in turns, an epoch each; by
      default every epoch has its own. What the teacher says of a view is kept and reused; with 0
      it is asked each time.
    """

    student: str | None = None
    teacher: str | tuple[str, ...] = BASELINE
    loss: Loss | tuple[Loss, ...] = field(default=Kd(), metadata=takes(Loss, losses, several=True))
    hard_weight: float = 0.1
    annealing: str = "constant"
    final_hard_weight: float | None = None
    average: str = "probabilities"
    teacher_weights: tuple[float, ...] = ()
    hints: Hint | None = field(default=None, metadata=takes(Hint, hints))
    transfer: str | None = None
    views: int | None = None

    @classmethod
    def modernized(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_parts(options, cls.hard_weight)

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, "loss")
        settle(self, "hints")
        require_name(self, "student")
        require_name(self, "transfer")
        require_choice(self, "average", AVERAGES)
        require_choice(self, "annealing", tuple(SHAPES))
        if self.views is not None:
            require_count(self, "views", least=0)
        self._check_teachers()
        self._check_weights()

    def _check_teachers(self) -> None:
        teacher, weights = self.teacher, self.teacher_weights
        names = [teacher] if isinstance(teacher, str) else teacher
        sound = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        sound = sound and bool(names)
        require(sound, self, f"teacher is a name or a list of names, not {teacher!r}")
        sound = isinstance(weights, (list, tuple))
        require(sound, self, f"teacher_weights is a list, not {weights!r}")
        object.__setattr__(self, "teacher", teacher if isinstance(teacher, str) else tuple(names))
        object.__setattr__(self, "teacher_weights", tuple(weights))
        if weights:
            fine = len(weights) == len(names) and all(is_number(w) and w > 0 for w in weights)
            require(fine, self, f"teacher_weights are {len(names)} positive numbers, one a teacher")
        if len(names) == 1:
            require(not weights, self, "teacher_weights needs several teachers")
            require(self.average == "probabilities", self, "average needs several teachers")
            return
        for loss in self.losses:
            sound = not loss.wants_logits or self.average == "logits"
            what = f"{loss.name()}() learns from several teachers with average='logits'"
            require(sound, self, what)
        require(self.hints is None, self, "hints come from one teacher, not from an ensemble")

    def _check_weights(self) -> None:
        require_positive(self, "hard_weight", "final_hard_weight", zero=True)
        taught = bool(self.losses) or self.hints is not None
        require(taught, self, "nothing is learnt from the teacher: that is train() or finetune()")
        alike = {repr(replace(loss, weight=1.0)) for loss in self.losses}
        once = len(alike) == len(self.losses)
        require(once, self, "two of the losses differ in their weight alone: add it up in one")
        if self.annealing == "constant":
            sound = self.final_hard_weight is None
            require(sound, self, "final_hard_weight needs annealing='linear' or 'cosine'")
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
        """Whether the loss looks at labels at any time."""
        hard = self.hard_weight > 0 or self.hard_gain > 0
        return hard or any(loss.wants_labels for loss in self.losses)

    @property
    def needs(self) -> frozenset[str]:
        found = super().needs | ({"labels"} if self.wants_labels else set())
        if self.transfer is not None:
            found -= {"train", "labels"}
        return found | ({"teacher"} if BASELINE in self.teacher_names else set())

    @property
    def students(self) -> frozenset[str]:
        return frozenset() if self.student in (None, SAME) else frozenset({str(self.student)})

    @property
    def teachers(self) -> frozenset[str]:
        return frozenset(self.teacher_names) - {INPUT}

    @property
    def transfers(self) -> frozenset[str]:
        return frozenset() if self.transfer is None else frozenset({self.transfer})

    def check(self, context: StepContext) -> None:
        super().check(context)
        self._check_pairs(context)
        for loss in self.losses:
            if loss.wants_single_classes and context.task.mixes:
                raise IllegalChain(
                    f"distill: {loss.name()}() looks at each item's class, and mixup gives "
                    f"mixtures of two: use another loss, or data without mixup"
                )
        if self.transfer is None:
            return
        if self.transfer not in context.transfers:
            raise unknown("transfer set", self.transfer, context.transfers)
        if self.wants_labels and not context.transfers[self.transfer].labelled:
            raise IllegalChain(
                f"distill: the transfer set {self.transfer} has no labels of this task's classes, "
                f"and hard_weight, annealing and losses such as dkd() look at labels: set "
                f"hard_weight=0 and leave out the others"
            )

    def _check_pairs(self, context: StepContext) -> None:
        """Refuse hints that teacher and student do not give, where both are known beforehand."""
        known = None if self.hints is None else self._known_teacher(context)
        if self.hints is None or known is None:
            return
        with torch.random.fork_rng(devices=[]):
            teacher, student = known.copy(), self.learner(context)
            if student is None:
                self.hints.check_teacher(teacher)
            else:
                HintLoss(self.hints, teacher, student.copy())

    def _known_teacher(self, context: StepContext) -> Model | None:
        [name] = self.teacher_names
        if name == BASELINE:
            return context.teacher
        return context.enters if name == INPUT else context.models.get(name)

    def learner(self, context: StepContext) -> Model | None:
        return context.student(str(self.student)) if self.students else context.enters

    def compress(self, model: Model, context: StepContext) -> Model:
        models = find_teachers(self.teacher_names, model, context)
        student = self._student(model, context)
        for one in models:
            check_pair(one, student)
        teacher = Teacher(models, context, self.average, self.teacher_weights)
        split = context.train if self.transfer is None else context.transfers[self.transfer].items
        assert split is not None, "run() has checked needs"
        hints = self._hints(teacher, student)
        labels = self._labels(teacher, context, split, hints is not None)
        views = self._views(context)
        if (self.views or 0) > 1 and not context.task.augmented:
            context.log.note(f"views={self.views}: without augmentation all views look the same")
        hooks = TrainingHooks(
            split=split,
            extra=hints,
            view=lambda epoch: epoch % views,
            before=labels.before,
            after=labels.after,
            traced=hints is None,
            labelled=self.transfer is None or context.transfers[self.transfer].labelled,
            label_weight=self._hard_weight,
            about={"teacher": teacher.identity()},
            blames=labels.blames,
        )
        try:
            made = fit(student, context, self, self._loss(labels, hints, context), hooks)
        finally:
            if hints is not None:
                hints.remove()
            teacher.forget()
        labels.tell()
        return made

    def _student(self, model: Model, context: StepContext) -> Model:
        if self.student is None:
            return model
        if self.student == SAME:
            return same_again(model, context)
        return fresh_model(self.student, model, context)

    def _hints(self, teacher: Teacher, student: Model) -> HintLoss | None:
        if self.hints is None:
            return None
        inside = HintLoss(self.hints, teacher.models[0], student)
        teacher.context.log.row("hints", pairs=[list(pair) for pair in inside.pairs])
        return inside

    def _views(self, context: StepContext) -> int:
        """Return how many augmented views there are: without augmentation all look the same."""
        if context.task.augmented:
            return self.views or self.epochs
        return 1

    def _labels(
        self, teacher: Teacher, context: StepContext, split: Split, features: bool
    ) -> SoftLabels:
        key: dict[str, Any] = {
            "teacher": teacher.identity(),
            "transfer": self.transfer and context.transfers[self.transfer].fingerprint,
            "items": arrangement(split),
            # Sums within a batch are rounded otherwise in batches of another size or order.
            "batches": [self.batch_size, context.seed],
        }
        # With hints the layers inside the teacher are needed, so it is asked in any case.
        keep = not features and self.views != 0
        given = self.views is not None
        showing = Showing(len(split), self._views(context), self.epochs, keep, given)
        return SoftLabels(teacher.ask, context, key, showing)

    def _hard_weight(self, progress: float) -> float:
        """Return the weight of the hard loss: it gains what the soft ones lose by annealing."""
        left = between(1.0, 0.0, self.annealing, progress)
        return self.hard_weight + (1 - left) * self.hard_gain

    def _loss(self, labels: SoftLabels, inside: HintLoss | None, context: StepContext) -> BatchLoss:
        share = partial(between, 1.0, 0.0, self.annealing)

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            answers = labels(batch)
            left = share(batch.progress)
            hard_weight = self._hard_weight(batch.progress)
            value = outputs.new_zeros(())
            for part in self.losses:
                if left > 0:
                    soft = part(outputs, answers, batch.targets, batch.progress)
                    value = value + part.weight * left * soft
            if hard_weight > 0:
                value = value + hard_weight * context.task.loss(outputs, batch.targets)
            if inside is not None:
                value = value + inside.hint.weight * inside.value()
            return value

        return loss
