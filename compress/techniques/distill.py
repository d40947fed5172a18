"""Knowledge distillation: a student learns from a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.compressor import is_number, require, require_choice, require_name
from compress.context import StepContext
from compress.ensemble import AVERAGES
from compress.errors import IllegalChain, unknown
from compress.model import Model
from compress.tasks.base import Split, arrangement
from compress.techniques.hints import HINTS, Hints, check_layer, matched, named_pairs
from compress.techniques.losses import LABEL_LOSSES, SOFT_LOSSES, standardized
from compress.techniques.schedules import SHAPES, between
from compress.techniques.soft_labels import Showing, SoftLabels
from compress.techniques.teachers import BASELINE, INPUT, Teacher, check_pair, find_teachers
from compress.techniques.train import fresh_model, same_again
from compress.training import Batch, Loss, Training, TrainingHooks, fit

SAME = "same"
SOFT = ("loss", "temperature", "final_temperature", "beta")
"""Options that shape the soft loss alone."""
TAUGHT = ("standardize", "annealing")
"""Options of all that is learnt from the teacher's outputs."""


@dataclass(frozen=True, repr=False)
class Distill(Training):
    """Train a student, or the model itself, on a teacher's outputs (Hinton et al. 2015).

    Minimises hard_weight · cross-entropy + soft_weight · soft loss
    + logits_weight · squared difference of the logits + hint_weight · hints.

    - `student`: a fresh model of that name; 'same': the architecture that enters, with fresh
      weights (born again, Furlanello et al. 2018); without one, the model that enters learns on.
    - `teacher`: 'baseline', 'input' (the model that enters), a model that the suite names, or a
      list of these: an ensemble, whose 'probabilities' or 'logits' are averaged (`average`),
      weighted by `teacher_weights`.
    - `loss`: 'kd' (softened probabilities), 'logits' (squared difference), 'dkd' (`beta` weighs
      what it says of the classes that are not the item's) or 'dist';
      `standardize` scales each item's logits to mean 0 and deviation 1 before.
      `logits_weight` adds the squared difference to another loss, or with `soft_weight=0` to none.
    - `temperature` leads to `final_temperature` along `temperature_schedule`. With `annealing`
      ('linear', 'cosine') what the teacher's outputs say fades out, and the hard loss gains what
      the soft one loses (Clark et al. 2019, section 3.2).
    - `hints`: 'fitnets' or 'attention', between the layers that `hint_layers` names
      ('teacher.layer:student.layer'), or those that match by themselves.
    - `transfer`: a data source whose images take the place of the training data, labelled or not.
    - `views`: how many augmented views of each item there are, shown in turns, an epoch each; by
      default every epoch has its own. What the teacher says of a view is kept and reused; with 0
      it is asked each time.
    """

    student: str | None = None
    teacher: str | tuple[str, ...] = BASELINE
    loss: str = "kd"
    temperature: float = 4.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9
    standardize: bool = False
    final_temperature: float | None = None
    temperature_schedule: str = "linear"
    annealing: str = "constant"
    average: str = "probabilities"
    teacher_weights: tuple[float, ...] = ()
    hints: str = "none"
    hint_weight: float = 1.0
    hint_layers: tuple[str, ...] = ()
    transfer: str | None = None
    views: int | None = None
    beta: float = 2.0
    logits_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher", "teacher_weights", "hint_layers"):
            value = getattr(self, name)
            texts = (str, list, tuple) if name == "teacher" else (list, tuple)
            what = "a name or a list of names" if name == "teacher" else "a list"
            require(isinstance(value, texts), self, f"{name} is {what}, not {value!r}")
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        require_name(self, "student")
        require_name(self, "transfer")
        require_choice(self, "loss", tuple(SOFT_LOSSES))
        require_choice(self, "hints", HINTS)
        require_choice(self, "average", AVERAGES)
        require_choice(self, "annealing", tuple(SHAPES))
        require_choice(self, "temperature_schedule", tuple(s for s in SHAPES if s != "constant"))
        require(isinstance(self.standardize, bool), self, "standardize is True or False")
        self._check_teachers()
        self._check_numbers()
        self._check_hints()

    def _check_teachers(self) -> None:
        names, weights = self.teacher_names, self.teacher_weights
        sound = bool(names) and all(isinstance(name, str) for name in names)
        require(sound, self, f"teacher is a name or a list of names, not {self.teacher!r}")
        if weights:
            fine = len(weights) == len(names) and all(is_number(w) and w > 0 for w in weights)
            require(fine, self, f"teacher_weights are {len(names)} positive numbers, one a teacher")
        several = len(names) > 1
        require(several or not weights, self, "teacher_weights needs several teachers")
        require(several or self.average == "probabilities", self, "average needs several teachers")
        squared = self.loss == "logits" or self.logits_weight != 0
        sound = not several or not squared or self.average == "logits"
        what = "loss='logits'" if self.loss == "logits" else "logits_weight"
        require(sound, self, f"{what} learns from several teachers with average='logits'")

    def _check_numbers(self) -> None:
        for name in ("temperature", "final_temperature"):
            heat = getattr(self, name)
            fine = (is_number(heat) and heat > 0) or (heat is None and name != "temperature")
            require(fine, self, f"{name} must be positive, not {heat!r}")
        usual = Distill.temperature
        require(
            self.loss != "logits" or (self.temperature, self.final_temperature) == (usual, None),
            self,
            "temperature has no part in loss='logits'",
        )
        require(
            self.final_temperature is not None or self.temperature_schedule == "linear",
            self,
            "temperature_schedule needs a final_temperature",
        )
        require(
            is_number(self.beta) and self.beta >= 0, self, f"beta must be >= 0, not {self.beta!r}"
        )
        require(self.beta == Distill.beta or self.loss == "dkd", self, "beta is of loss='dkd'")
        for name in ("hard_weight", "soft_weight", "hint_weight", "logits_weight"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, self, f"{name} must be >= 0, not {value!r}")
        outputs = self.soft_weight > 0 or self.logits_weight > 0
        taught = outputs or self.hints != "none"
        require(taught, self, "nothing is learnt from the teacher: that is train() or finetune()")
        once = self.loss != "logits" or self.logits_weight == 0
        require(once, self, "loss='logits' has its weight in soft_weight: leave out logits_weight")
        for names, used in ((SOFT, self.soft_weight > 0), (TAUGHT, outputs)):
            for name in names:
                fine = used or getattr(self, name) == getattr(Distill, name)
                require(fine, self, f"{name} is of the soft loss, and soft_weight is 0")
        stays = self.hard_weight > 0 or self.soft_weight > 0 or self.hints != "none"
        require(
            self.annealing == "constant" or stays,
            self,
            "annealing fades out all there is to learn: set a hard_weight",
        )
        views = self.views
        counted = isinstance(views, int) and not isinstance(views, bool) and views >= 0
        require(views is None or counted, self, f"views must be a whole number >= 0, not {views!r}")

    def _check_hints(self) -> None:
        given = self.hint_layers
        sound = all(
            isinstance(text, str) and text.count(":") == 1 and all(text.split(":"))
            for text in given
        )
        require(sound, self, "hint_layers are texts such as 'layer1:features.3'")
        require(not given or self.hints != "none", self, "hint_layers without hints='fitnets'")
        weighed = self.hint_weight != Distill.hint_weight
        require(not weighed or self.hints != "none", self, "hint_weight without hints='fitnets'")
        require(
            self.hints == "none" or self.hint_weight > 0, self, "hint_weight is 0: leave out hints"
        )
        alone = self.hints == "none" or len(self.teacher_names) == 1
        require(alone, self, "hints come from one teacher, not from an ensemble")

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
        gains = self.annealing != "constant" and self.soft_weight > 0
        return self.hard_weight > 0 or gains or self.loss in LABEL_LOSSES

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
        self._check_pairs(context)
        if self.loss in LABEL_LOSSES and context.task.mixes:
            raise IllegalChain(
                f"distill: loss={self.loss!r} looks at each item's class, and mixup gives mixtures "
                f"of two: use another loss, or data without mixup"
            )
        if self.transfer is None:
            return
        if self.transfer not in context.transfers:
            raise unknown("transfer set", self.transfer, context.transfers)
        if self.wants_labels and not context.transfers[self.transfer].labelled:
            raise IllegalChain(
                f"distill: the transfer set {self.transfer} has no labels of this task's classes, "
                f"and hard_weight, annealing and loss='dkd' look at labels: set hard_weight=0 and "
                f"leave out the others"
            )

    def _check_pairs(self, context: StepContext) -> None:
        """Refuse hints that teacher and student do not give, where both are known beforehand."""
        if self.hints == "none":
            return
        known = self._known_teacher(context)
        if known is None:
            return
        with torch.random.fork_rng(devices=[]):
            teacher, student = known.copy(), self._known_student(context)
            if student is not None:
                Hints(self.hints, self._pairs(teacher, student), teacher, student)
                return
        for text in self.hint_layers:
            check_layer(text.partition(":")[0], teacher, "teacher")

    def _known_teacher(self, context: StepContext) -> Model | None:
        [name] = self.teacher_names
        if name == BASELINE:
            return context.teacher
        return context.enters if name == INPUT else context.models.get(name)

    def _known_student(self, context: StepContext) -> Model | None:
        if self.student not in (None, SAME):
            return context.student(str(self.student))
        return None if context.enters is None else context.enters.copy()

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

    def _hints(self, teacher: Teacher, student: Model) -> Hints | None:
        if self.hints == "none":
            return None
        first = teacher.models[0]
        pairs = self._pairs(first, student)
        teacher.context.log.row("hints", pairs=[list(pair) for pair in pairs])
        return Hints(self.hints, pairs, first, student)

    def _pairs(self, teacher: Model, student: Model) -> list[tuple[str, str]]:
        if self.hint_layers:
            return named_pairs(self.hint_layers, teacher, student)
        return matched(teacher, student)

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

    def _loss(self, labels: SoftLabels, hints: Hints | None, context: StepContext) -> Loss:
        soft = SOFT_LOSSES[self.loss]
        if self.loss == "dkd":
            soft = partial(soft, beta=self.beta)
        last = self.temperature if self.final_temperature is None else self.final_temperature
        heat = partial(between, self.temperature, last, self.temperature_schedule)
        share = partial(between, 1.0, 0.0, self.annealing)

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            taught = labels(batch)
            left = share(batch.progress)
            hard_weight = self.hard_weight + (1 - left) * self.soft_weight
            value = outputs.new_zeros(())
            ours, theirs = outputs, taught
            if self.standardize:
                ours, theirs = standardized(ours), standardized(theirs)
            if self.soft_weight * left > 0:
                part = soft(ours, theirs, heat(batch.progress), batch.targets)
                value = value + self.soft_weight * left * part
            if self.logits_weight * left > 0:
                part = SOFT_LOSSES["logits"](ours, theirs, 1.0)
                value = value + self.logits_weight * left * part
            if hard_weight > 0:
                value = value + hard_weight * context.task.loss(outputs, batch.targets)
            if hints is not None:
                value = value + self.hint_weight * hints.value()
            return value

        return loss
