"""The one interface of every technique, and the ways to put techniques together.

A technique is a frozen dataclass that derives from `Compressor`: its fields are its
configuration, and `repr` gives the text that stands in suites, tables and model cards.
`Chain` and `Repeat` are Compressors too. `run` is the one place that copies, seeds and checks.
"""

from __future__ import annotations

import itertools
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from compress.context import StepContext
from compress.ensemble import MOST_MEMBERS, settle, together
from compress.errors import IllegalChain, StepFailed, UserError, first_line
from compress.heads import heads_of
from compress.model import Model, became_nonfinite, forward, identity, on_device_of
from compress.parts import Configured, kept_fractions, one_of, whole_number
from compress.stateless_rng import seed_of
from compress.system.progress import stage


class Compressor(Configured, ABC):
    """One step that makes a trained model cheaper for the same task."""

    lowers: ClassVar[bool] = False
    """Whether the step writes `Model.onnx`; then no step may follow."""
    restarts: bool = False
    """Whether the step discards the weights that enter it."""
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that take seconds to import and that the step imports only when it runs."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options that a search tries as a technique of their own, by what it makes small: 'size'."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Installed distributions that only this step uses. Results depend on their versions."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def students(self) -> frozenset[str]:
        """The names of the models that the step builds."""
        return frozenset()

    @property
    def builds(self) -> bool:
        """Whether what comes out is a model that the step has built, not the one that entered."""
        return bool(self.students)

    @property
    def discards(self) -> bool:
        """Whether nothing of what enters is used, not even its architecture."""
        return self.restarts

    @property
    def teachers(self) -> frozenset[str]:
        """The names of the trained models that the step learns from, other than its input."""
        return frozenset()

    @property
    def transfers(self) -> frozenset[str]:
        """The names of the data sources that the step learns from in place of the task's own."""
        return frozenset()

    @property
    def steps(self) -> tuple[Compressor, ...]:
        """The steps that run one after another; of a single technique, itself."""
        return (self,)

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        """Steps that make the shapes of what comes out, without training it; by default, itself.

        So what a chain will cost is known before anything is trained. None where the training
        decides on the shapes.
        """
        return (self,)

    @abstractmethod
    def compress(self, model: Model, context: StepContext) -> Model:
        """Return the compressed model. `model` is this call's own copy and may be changed."""

    def check(self, context: StepContext) -> None:
        """Raise IllegalChain if the step cannot work on a context, beyond what `needs` says."""

    def at(self, progress: float) -> Self:
        """Return the step at a fraction of its way, for `Repeat`.

        By default all that it keeps falls linearly to its kept fractions; a step without any stays
        as it is.
        """
        kept = {name: 1 - progress * (1 - value) for name, value in kept_fractions(self).items()}
        return replace(self, **kept) if kept else self  # type: ignore[type-var]

    def __rshift__(self, other: Compressor) -> Chain:
        return Chain(self, other)


def require(condition: bool, step: Configured, sentence: str) -> None:
    """Refuse a setting of a step with a sentence that says what is allowed."""
    if not condition:
        raise IllegalChain(f"{step.name()}: {sentence}")


def require_one_of(step: Configured, *names: str) -> None:
    """Require exactly one of some optional fields to be given."""
    given = [name for name in names if getattr(step, name) is not None]
    require(len(given) == 1, step, f"give exactly one of {', '.join(names)}; got {given or 'none'}")


class _Composite(Compressor):
    """A step made of others: it needs, builds and names whatever they do."""

    @property
    def inner(self) -> tuple[Compressor, ...]:
        """The steps that it is made of."""
        return self.steps

    def _all(self, names: str) -> frozenset[str]:
        return frozenset().union(*(getattr(step, names) for step in self.inner))

    @property
    def needs(self) -> frozenset[str]:
        return self._all("needs")

    @property
    def students(self) -> frozenset[str]:
        return self._all("students")

    @property
    def teachers(self) -> frozenset[str]:
        return self._all("teachers")

    @property
    def transfers(self) -> frozenset[str]:
        return self._all("transfers")

    @property
    def builds(self) -> bool:
        return any(step.builds for step in self.inner)

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        steps: tuple[Compressor, ...] = ()
        for one in self.inner:
            if (shapes := one.untrained) is None:
                return None
            steps += shapes
        return steps

    def check(self, context: StepContext) -> None:
        for step in self.inner:
            step.check(context)
            # What comes out of a step is known when it has run, unless it trains what it is given.
            if step.untrained != ():
                context = replace(context, enters=None)


@dataclass(frozen=True, init=False, repr=False)
class Chain(_Composite):
    """Steps one after another: `Chain(a, b)` is the text `a -> b`. Chains flatten."""

    parts: tuple[Compressor, ...]

    def __init__(self, *parts: Compressor) -> None:
        for part in parts:
            if not isinstance(part, Compressor):
                raise IllegalChain(f"a chain consists of steps, and {part!r} is not one")
        flat = tuple(step for part in parts for step in part.steps)
        if not flat:
            raise IllegalChain("a chain needs at least one step")
        for before, after in itertools.pairwise(flat):
            if before.lowers:
                raise IllegalChain(
                    f"{before.name()}() writes the file that is deployed, so no step may follow "
                    f"it: move {after.name()}(...) before {before.name()}()"
                )
            if after.discards and not (before.restarts and not before.builds and after.builds):
                raise IllegalChain(
                    f"{after!r} starts from fresh weights and would discard what {before!r} made: "
                    f"{_instead(after)}"
                )
        object.__setattr__(self, "parts", flat)

    @property
    def steps(self) -> tuple[Compressor, ...]:
        return self.parts

    @property
    def lowers(self) -> bool:  # type: ignore[override]
        return self.parts[-1].lowers

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return self.parts[0].restarts

    def at(self, progress: float) -> Chain:  # type: ignore[override]
        return Chain(*(part.at(progress) for part in self.parts))

    def compress(self, model: Model, context: StepContext) -> Model:
        for part in self.parts:
            model = run(part, model, context)
            context = replace(context, position=context.position + len(leaves(part)))
        return model

    def __repr__(self) -> str:
        return " -> ".join(map(repr, self.parts))


def _instead(step: Compressor) -> str:
    if not step.builds:
        return "put it first, or use finetune(...)"
    return "let the student learn from it with distill(..., teacher='input'), or leave it out"


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    # Zhu and Gupta 2017, equation 1: fast at first, slow towards the end.
    "cubic": lambda t: 1 - (1 - t) ** 3,
}


@dataclass(frozen=True, repr=False)
class Repeat(_Composite):
    """Run a step `times` times, further each time: `at(schedule(i / times))`, i = 1..times.

    Fractions inside refer to the model that enters the outermost `repeat`. With
    `result='ensemble'` the results of all rounds become one ensemble (the mean of their
    probabilities), such as the generations of `distill(student='same', teacher='input')`.
    """

    times: int = field(metadata=whole_number())
    step: Compressor
    schedule: str = field(default="linear", metadata=one_of(*SCHEDULES))
    result: str = field(default="last", metadata=one_of("last", "ensemble"))

    def __post_init__(self) -> None:
        super().__post_init__()
        small = self.result == "last" or self.times <= MOST_MEMBERS
        require(small, self, f"an ensemble has at most {MOST_MEMBERS} members")
        step = self.step
        require(isinstance(step, Compressor), self, f"the second value is a step, not {step}")
        lowers = f"{step!r} ends in a step that writes the deployed file, which cannot be repeated"
        require(not step.lowers, self, lowers)
        first = step.steps[0].name()
        restarts = f"{first} starts from fresh weights each time, so it cannot be repeated"
        require(not step.restarts, self, restarts)

    @property
    def inner(self) -> tuple[Compressor, ...]:
        return (self.step,)

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        if self.step.builds:
            return None
        steps = super().untrained
        if not steps:
            return steps
        return (replace(self, step=steps[0] if len(steps) == 1 else Chain(*steps)),)

    def at(self, progress: float) -> Repeat:  # type: ignore[override]
        return replace(self, step=self.step.at(progress))

    def compress(self, model: Model, context: StepContext) -> Model:
        if context.origin is None:
            context = replace(context, origin=model.copy())
        models = []
        # The rounds of a repeat inside this one count too, so that no two have the same seed.
        inner = max(times for _, times in leaves(self.step))
        for i in range(self.times):
            step = self.step.at(SCHEDULES[self.schedule]((i + 1) / self.times))
            # Derived, so that the second time of one seed is not the first of another.
            seed = context.seed if i == 0 else seed_of("repeat", context.seed, i * inner + 1)
            with stage(f"round {i + 1} of {self.times}, {step!r}"):
                model = run(step, model, replace(context, seed=seed))
            models.append(model)
        return model if self.result == "last" else together(models)

    def __repr__(self) -> str:
        more = "" if self.schedule == "linear" else f", schedule={self.schedule!r}"
        more += "" if self.result == "last" else f", result={self.result!r}"
        return f"repeat({self.times}, {self.step!r}{more})"


def leaves(step: Compressor, times: int = 1) -> list[tuple[Compressor, int]]:
    """Return every single step inside one, in order, and how often it runs."""
    if isinstance(step, Repeat):
        return leaves(step.step, times * step.times)
    if step.steps == (step,):
        return [(step, times)]
    return [leaf for part in step.steps for leaf in leaves(part, times)]


def step_seed(seed: int, position: int) -> int:
    """Return the seed of the step at a position in its chain, the baseline's own step included.

    With one seed for all, a second training would see the items in the first one's order, in the
    first one's augmented views.
    """
    return seed if position == 0 else seed_of("step", seed, position)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _without(compressor: Compressor, need: str) -> str:
    """Say how a step can do without something ('' if it can't)."""
    if not (is_dataclass(compressor) and hasattr(compressor, need)):
        return ""
    try:
        other = replace(compressor, **{need: 0})
    except UserError:
        return ""
    return "" if need in other.needs else f". It can do without: give {need}=0"


def run(compressor: Compressor, model: Model, context: StepContext) -> Model:
    """Apply a compressor to a copy of `model`, seeded, and check what it returns.

    Raises IllegalChain where the step cannot work on this model or context, and StepFailed
    where its result is unusable (not finite, or outputs of another shape).
    """
    if model.lowered:
        raise IllegalChain(f"{compressor!r} cannot follow a step that wrote the deployed file")
    for need in sorted(compressor.needs):
        if not context.has(need):
            without = _without(compressor, need)
            raise IllegalChain(
                f"{compressor.name()} needs {need}, and the context has none{without}"
            )
    compressor.check(context)
    if isinstance(compressor, (Chain, Repeat)):
        # Their steps come through here one by one, each with a copy of its own.
        return compressor.compress(model, context)
    expected = _outputs_of(model, compressor).shape
    context = replace(
        context,
        seed=step_seed(context.seed, context.position),
        position=0,
        origin=model if context.origin is None else context.origin,
    )
    seed_everything(context.seed)
    started, before = time.perf_counter(), len(context.log.rows)
    computed = time.process_time()
    result = compressor.compress(model.copy(), context)
    computed = time.process_time() - computed
    seconds = time.perf_counter() - started
    # The time of processes that were stopped before they finished the step.
    seconds += sum(row.get("earlier_seconds", 0.0) for row in context.log.rows[before:])
    # CPU seconds of this process (all threads) do not depend on what else the machine does.
    taken = {"seconds": round(seconds, 3), "cpu_seconds": round(computed, 3)}
    context.log.row("step", step=repr(compressor), **taken)
    _check(compressor, model, result, expected)
    # They are about the weights that entered, unless the step has left its own.
    stale = result.hints and result.hints == model.hints and identity(result) != identity(model)
    return replace(result, hints={}) if stale else result


def _outputs_of(model: Model, compressor: Compressor) -> Tensor:
    """Return what a model gives for its own items, before a step starts."""
    try:
        return forward(model.module, model.items())
    except Exception as error:  # whatever a foreign forward trips over
        shapes = ", ".join(str(tuple(one.shape)) for one in model.items())
        raise UserError(
            f"{compressor.name()} cannot start: the model does not run on its {len(model.probe)} "
            f"input{'s' if len(model.probe) > 1 else ''} (of shape {shapes}): "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _check(compressor: Compressor, model: Model, result: object, expected: torch.Size) -> None:
    if not isinstance(result, Model):
        raise StepFailed(f"{compressor!r} returned {type(result).__name__} and not a Model")
    if names := became_nonfinite(result.module.state_dict(), model.module.state_dict()):
        raise StepFailed(f"{compressor!r} left values that are not finite in {names[0]}")
    result.module.eval()
    if heads_of(model.module) is not None and heads_of(result.module) is None:
        settle(result, expected[1:])  # it was built anew
    inputs = on_device_of(result.module, model.items())
    outputs = forward(result.module, inputs)
    if outputs.shape != expected:
        raise StepFailed(
            f"{compressor!r} changed the shape of the outputs from {tuple(expected)} to "
            f"{tuple(outputs.shape)}"
        )
    if not outputs.isfinite().all():
        raise StepFailed(f"{compressor!r} gives outputs that are not finite")
    again = forward(result.module, tuple(tensor.flip(0) for tensor in inputs)).flip(0)
    if (again - outputs).abs().max() > 1e-3 * outputs.abs().max():
        raise StepFailed(
            f"{compressor!r} gives an item other outputs in another order: the model remembers "
            f"earlier inputs, or mixes the items of a batch"
        )
    if absent := result.sparse - dict(result.module.named_parameters()).keys():
        raise StepFailed(f"{compressor!r} lists sparse weights that do not exist: {absent}")
