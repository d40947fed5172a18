"""The rows of a table, from the texts of a suite: the baseline, the chains, their controls.

A chain that trains differs from its baseline in two ways: by the technique, and by the training.
Its control of equal cost has the training only, with as many samples and the same settings, so
what the chain has over its control is the technique's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.benchmark.plan.suite import Suite
from compress.compressor import Chain, Compressor, Repeat, leaves
from compress.errors import IllegalChain, UserError
from compress.results.record import BASELINE, CONTROL, Step
from compress.techniques import chain as parse
from compress.techniques.finetune import Finetune
from compress.techniques.prune_channels import PruneChannels
from compress.techniques.train import Train
from compress.training import Training


@dataclass(frozen=True)
class Row:
    """A chain to run: its text (without the baseline's step) and its parsed steps."""

    text: str
    chain: Compressor | None
    """None for the baseline itself."""
    role: str = ""
    """'control' if the suite does not have the row, but another one is compared with it."""
    control: str = ""
    """The text of the row that is this one's control of equal cost; '' if there is none."""
    uncontrolled: str = ""
    """Why a chain that trains has no control."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The chain's steps as a record has them."""
        return () if self.chain is None else tuple(map(_recorded, self.chain.steps))


def _recorded(step: Compressor) -> Step:
    return Step(
        step.name(),
        repr(step),
        trains="train" in step.needs,
        lowers=step.lowers,
        builds=step.builds,
        restarts=step.restarts,
        steps=tuple(map(_recorded, step.step.steps)) if isinstance(step, Repeat) else (),
    )


def rows_of(
    suite: Suite, has_weights: bool, named: bool = True
) -> tuple[Compressor | None, tuple[Row, ...]]:
    """Return the baseline's step (None where there are weights) and the rows, the baseline first.

    `named` is False where the suite's model is an object of a Python user, which no name builds.
    Raises IllegalChain for chains that do not fit together, UserError for one that stands twice.
    """
    chains = [parse(text) for text in suite.chains]
    baseline = _baseline(suite, chains, has_weights)
    rows = [Row(BASELINE, None)]
    for chain in chains:
        first, *rest = chain.steps
        if repr(first) != repr(baseline) and not _is_baseline(first):
            rest = [first, *rest]
        elif repr(first) != repr(baseline):
            why = "weights are given: leave out the step, or the weights"
            if baseline is not None:
                why = f"the baseline is {baseline!r}, and a suite has one"
            raise IllegalChain(f"{chain!r} starts from {first!r}, but {why}")
        if not rest:
            continue
        row = rest[0] if len(rest) == 1 else Chain(*rest)
        if repr(row) in {other.text for other in rows}:
            raise UserError(f"the chain {row!r} stands twice in the suite")
        rows.append(Row(repr(row), row))
    return baseline, with_controls(rows, suite.controls, suite.model if named else "")


def _baseline(suite: Suite, chains: list[Compressor], has_weights: bool) -> Compressor | None:
    """Return the baseline's step: the suite's own, or that with which the first chain begins."""
    if suite.baseline is None:
        starts = [chain.steps[0] for chain in chains if _is_baseline(chain.steps[0])]
        if suite.weights is None and not starts and not has_weights:
            raise IllegalChain(
                "the model has no weights: give weights, or have train(epochs=...) make them, as "
                "the baseline (--baseline) or at the beginning of the chain"
            )
        return starts[0] if starts and suite.weights is None else None
    baseline = parse(suite.baseline)
    if isinstance(baseline, Finetune):
        if not has_weights:
            raise IllegalChain(
                f"{baseline!r} trains weights on, and none are given: give weights, or begin with "
                f"train(...)"
            )
        return baseline
    if not _is_baseline(baseline):
        raise IllegalChain(
            f"the baseline must be one step, train(...) without a student, or finetune(...) of "
            f"given weights, not {baseline!r}"
        )
    if suite.weights is not None:
        raise IllegalChain(
            f"{baseline!r} starts from fresh weights, and weights are given too: leave out one, or "
            f"train the weights on with finetune(...)"
        )
    return baseline


def _is_baseline(step: Compressor) -> bool:
    return step.restarts and not step.builds and len(step.steps) == 1


def row_text(chain: str, baseline: str) -> str:
    """Return the text by which the row of a chain is known: without the baseline's own text.

    Raises UserError for a text that is no chain, or is the baseline itself.
    """
    steps = () if chain.strip() == BASELINE else parse(chain).steps
    if steps and repr(steps[0]) == baseline:
        steps = steps[1:]
    if not steps:
        raise UserError(f"{chain!r} is the baseline itself: name a row that is compared with it")
    return " -> ".join(map(repr, steps))


def with_controls(rows: Sequence[Row], add: bool, model: str = "") -> tuple[Row, ...]:
    """Return the rows, each with its control if that is a row too; `add` the ones that are not."""
    controlled: list[Row] = []
    added: list[Row] = []
    for row in rows:
        control = None if row.chain is None else control_of(row.chain, model)
        if isinstance(control, str):
            row = replace(row, uncontrolled=control if add else "")
        elif control is not None:
            texts = [other.text for other in [*rows, *added] if other.chain == control]
            if not texts and add:
                texts = [repr(control)]
                added.append(Row(texts[0], control, role=CONTROL))
            row = replace(row, control=texts[0] if texts else "")
        controlled.append(row)
    return (*controlled, *added)


def control_of(chain: Compressor, model: str = "") -> Training | str | None:
    """Return the control of a chain, or in words why it has none although it trains.

    None if it does not train or is itself such a control. For a chain that trains a student, the
    control is the student trained on labels: `train(student=...)` with the settings of the step
    that trained it; otherwise the baseline trained on: `finetune(...)` with those of the step that
    trains longest. Both get the epochs of all the chain's steps. `model` names the suite's model,
    whose architecture a student may have.
    """
    if type(chain) in (Finetune, Train):
        return None
    steps = leaves(chain)
    for step, _ in steps:
        if _trains_in_its_own_way(step):
            return f"{step.name()} trains in its own way, which no control repeats"
    trainings = [(step, times) for step, times in steps if isinstance(step, Training)]
    if not trainings:
        return None
    if any(step.transfers for step, _ in trainings):
        return "it learns from a transfer set, which labels alone cannot do"
    taught = [step for step, _ in trainings if step.builds]
    longest, _ = max(trainings, key=lambda pair: pair[0].epochs * pair[1])
    # A later student learns from an earlier one: the last is what is deployed.
    source = taught[-1] if taught else longest
    # By value: the control's class has other defaults.
    settings = {item.name: getattr(source, item.name) for item in dataclasses.fields(Training)}
    settings["epochs"] = sum(step.epochs * times for step, times in trainings)
    if not taught:
        return Finetune(**settings)
    student = _name_of_student(steps, model)
    if not student:
        return "no name builds its student with fresh weights"
    return Train(student=student, **settings)


def _name_of_student(steps: Sequence[tuple[Compressor, int]], model: str) -> str:
    """Return the name of the last student's architecture; '' if steps before it made it."""
    name, entering, shaped = "", model, False
    for step, _ in steps:
        if step.students:
            (entering,) = step.students
            name, shaped = entering, False
        elif step.builds:
            name = "" if shaped else entering
        elif not isinstance(step, Training):
            shaped = True
    return name


def _trains_in_its_own_way(step: Compressor) -> bool:
    """Whether a plug-in uses the training data, or students, otherwise than our steps do."""
    if isinstance(step, Training):
        return len(step.students) > 1
    if isinstance(step, PruneChannels):
        return False  # some criteria look at gradients, of weights that stay what they are
    return "train" in step.needs or bool(step.students)
