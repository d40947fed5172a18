"""The models of a plan: built by name with their weights, or copies of a Python user's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from compress.benchmark.plan.suite import Named, NamedTeacher, Suite
from compress.ensemble import settle
from compress.errors import UserError
from compress.find_heads import Judge
from compress.heads import Path as OutputPath
from compress.model import INSTANCE, Blueprint, Model, copied
from compress.tasks.base import Data, InputChange, Sight, Task
from compress.tasks.preprocessing import Settings
from compress.training.evaluate import accuracies
from compress.zoo.given import bake, refuse_random, reparametrized
from compress.zoo.models import fresh
from compress.zoo.pretrained import Pretrained, pretrained, seen_otherwise, set_rescaling
from compress.zoo.weights import Loaded, load_weights


@dataclass(frozen=True)
class Models:
    """Builds the models of a plan, and keeps what became of their weights."""

    data: Data
    allow_code: Collection[Path]
    loaded: dict[str, Loaded] = field(default_factory=dict)
    """By "teacher 'NAME'" or "student 'NAME'"; that of the start by ''."""

    def start(self, suite: Suite, own: nn.Module | None, trained: bool, given: bool) -> Model:
        """Return the model that enters the baseline, which may train it.

        `given` data are prepared already: it is said if its weights were trained otherwise.
        """
        named = Named(suite.model, suite.weights)
        return self._model("", named, own, "start" if trained else "", given)

    def teachers(self, suite: Suite, own: Mapping[str, nn.Module]) -> dict[str, Model]:
        """Return a suite's teachers by name; some may be a Python user's own modules."""
        return {
            name: self._model(name, named, own.get(name)) for name, named in suite.teachers.items()
        }

    def students(self, suite: Suite) -> dict[str, Model]:
        """Return the students that a suite names with their weights, by name."""
        return {
            name: self._model(name, named, None, "student")
            for name, named in suite.students.items()
        }

    def _model(
        self,
        name: str,
        named: Named,
        own: nn.Module | None,
        trained: str = "",
        given: bool = False,
    ) -> Model:
        """Build a model by name with its weights, or wrap a copy of a Python user's own module.

        `name` is a teacher's or a student's. What will be `trained` (a 'student', or the 'start'
        of the baseline) may have weights for other classes. Raises UserError if the model does
        not fit the data.
        """
        kind = trained or "teacher"
        task, what = self.data.task, f"{kind} {name!r}" if name else "the model"
        key = what if name else ""
        change, seen, sight, validation = None, "", None, self.data.validation
        known = pretrained(named.model, named.weights) if own is None else None
        if isinstance(named, NamedTeacher):
            if named.weights is None and own is None:
                raise UserError(f"{what} needs weights: an untrained model teaches nothing")
            sight = _sight(named, what, self.data, known)
            if sight is None:
                task, change, seen = _seen_by(named, what, task, known)
            else:
                task, seen = sight.task, f"sees {sight.words}; "
                validation = sight.of(validation)
        elif known is not None and (name or given):
            seen = seen_otherwise(known, task)

        def load(module: nn.Module) -> None:
            if named.weights is not None:
                [classes] = task.output_shape()
                placed = load_weights(module, named.weights, named.model, bool(trained), classes)
                self.loaded[key] = replace(placed, words=seen + placed.words)
            if kinds := {f"{kind} of {path}" for path, _, kind in reparametrized(module)}:
                said = f"baked into plain weights: {', '.join(sorted(kinds))}"
                before = self.loaded.get(key, Loaded("", new_head=False))
                said = "; ".join(filter(None, [before.words, said]))
                self.loaded[key] = replace(before, words=said)
            set_rescaling(module, known)
            if change is not None:
                module.register_forward_pre_hook(change)

        def judge(module: nn.Module, paths: Sequence[OutputPath]) -> tuple[Sequence[float], int]:
            return accuracies(module, task, validation, paths)

        if own is None:
            sure = named.weights is not None and not trained
            model = fresh(
                named.model, task, self.allow_code, load=load, judge=judge if sure else None
            )
        else:
            model = _instance(own, what, task, load, judge)
        return replace(model, sight=sight)


def _instance(
    own: nn.Module, what: str, task: Task, load: Callable[[nn.Module], None], judge: Judge
) -> Model:
    """Wrap a copy of a module: the caller's keeps its mode, device and type."""
    module = copied(own).cpu().float().eval()
    load(module)
    masked = bake(module)
    model = Model(module, task.probe(), masked, blueprint=Blueprint(INSTANCE), inputs=task.inputs)
    try:
        refuse_random(module, model.items(), "the model")
        shape = tuple(settle(model, task.output_shape(), judge).shape)
    except UserError as error:
        raise UserError(str(error).replace("the model", what, 1)) from error
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"{what} does not take the data's inputs: {error}") from error
    expected = (1, *task.output_shape())
    if shape != expected:
        raise UserError(
            f"{what} gives outputs of shape {shape} for one item, and the data needs {expected}"
        )
    return model


def _seen_by(
    named: NamedTeacher, what: str, task: Task, known: Pretrained | None
) -> tuple[Task, InputChange | None, str]:
    """Return the task of a teacher, what changes the inputs to its own, and that in words."""
    settings, usual = named.settings(), _usual(task, known)
    if usual is not None:
        settings = settings.over(usual)
    try:
        own, change = task.seen_by(settings)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
    return own, change, "" if change is None else f"sees {change.words}; "


def _sight(named: NamedTeacher, what: str, data: Data, known: Pretrained | None) -> Sight | None:
    """Return how a teacher sees items that are made anew for it; None if it gets the run's."""
    usual, splits = _usual(data.task, known), (data.train, data.validation)
    try:
        return data.task.sight(named.settings(), usual, splits)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def _usual(task: Task, known: Pretrained | None) -> Settings | None:
    """Return what is known of a teacher's preprocessing, if its weights are for the task."""
    return known.settings if known and (known.classes,) == task.output_shape() else None
