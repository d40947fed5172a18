"""The rows of a table, from the texts of a suite: the baseline, the chains, their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.benchmark.plan.controls import control_of
from compress.benchmark.plan.suite import Suite
from compress.compressor import Chain, Compressor, Repeat
from compress.errors import IllegalChain, UserError
from compress.results.record import BASELINE, CONTROL, Step
from compress.techniques import chain as parse


@dataclass(frozen=True)
class Row:
    """A chain to run: its text (without the baseline's step) and its parsed steps."""

    text: str
    chain: Compressor | None
    """None for the baseline itself."""
    role: str = ""
    """'control' if no one asked for the row, but another one needs it beside it."""
    control: str = ""
    """The text of the row that is this one's control of equal cost; '' if there is none."""
    uncontrolled: str = ""
    """Why a chain that trains has no control."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """What a record says of the chain's steps."""
        return () if self.chain is None else tuple(map(_told, self.chain.steps))


def rows_of(
    suite: Suite, has_weights: bool, named: bool = True
) -> tuple[Compressor | None, tuple[Row, ...]]:
    """Return the baseline's step (None where there are weights) and the rows, the baseline first.

    `named` is False where the suite's model is an object of a Python user, which no name builds.
    Raises IllegalChain for chains that do not fit together, UserError for one that stands twice.
    """
    baseline = None if suite.baseline is None else parse(suite.baseline)
    parsed = [parse(text) for text in suite.chains]
    if baseline is None and suite.weights is None:
        baseline = _common_start(parsed, has_weights)
    elif baseline is not None and not _is_baseline(baseline):
        raise IllegalChain(
            f"the baseline must be one step from fresh weights, train(...) without a student, "
            f"not {baseline!r}"
        )
    if baseline is not None and suite.weights is not None:
        raise IllegalChain(
            f"{baseline!r} starts from fresh weights, and weights are given too: leave out one"
        )
    rows = [Row(BASELINE, None)]
    for chain in parsed:
        steps = chain.steps
        if _is_baseline(steps[0]):
            if repr(steps[0]) != repr(baseline):
                why = (
                    f"the baseline is {baseline!r}, and a suite has one"
                    if baseline
                    else "weights are given: leave out the step, or the weights"
                )
                raise IllegalChain(f"{chain!r} starts from {steps[0]!r}, but {why}")
            steps = steps[1:]
        if not steps:
            continue
        rest = steps[0] if len(steps) == 1 else Chain(*steps)
        if repr(rest) in {row.text for row in rows}:
            raise UserError(f"the chain {rest!r} stands twice in the suite")
        rows.append(Row(repr(rest), rest))
    return baseline, with_controls(rows, suite.controls, suite.model if named else "")


def row_text(chain: str, baseline: str) -> str:
    """Return the text by which the row of a chain is known: without the baseline's own text.

    Raises UserError for a text that is no chain, or is the baseline itself.
    """
    steps = parse(chain).steps
    if repr(steps[0]) == baseline:
        steps = steps[1:]
    if not steps:
        raise UserError(f"{chain!r} is the baseline itself: name a row that is compared with it")
    return " -> ".join(map(repr, steps))


def with_controls(rows: Sequence[Row], add: bool, model: str = "") -> tuple[Row, ...]:
    """Return the rows, each with its control if that is a row too; `add` the ones that are not."""
    found: list[Row] = []
    added: list[Row] = []
    for row in rows:
        control = None if row.chain is None else control_of(row.chain, model)
        if control is not None and control.step is None:
            row = replace(row, uncontrolled=control.reason if add else "")
        elif control is not None:
            there = [other.text for other in [*rows, *added] if other.chain == control.step]
            if not there and add:
                added.append(Row(repr(control.step), control.step, role=CONTROL))
                there = [added[-1].text]
            row = replace(row, control=there[0] if there else "")
        found.append(row)
    return (*found, *added)


def _is_baseline(step: Compressor) -> bool:
    return step.restarts and not step.builds and len(step.steps) == 1


def _common_start(chains: list[Compressor], has_weights: bool) -> Compressor | None:
    starts = [chain.steps[0] for chain in chains if _is_baseline(chain.steps[0])]
    if not starts:
        if has_weights:
            return None
        raise IllegalChain(
            "the model has no weights: begin the chain with train(epochs=...), or give weights"
        )
    return starts[0]


def _told(step: Compressor) -> Step:
    inner = step.step.steps if isinstance(step, Repeat) else ()
    return Step(
        step.name(),
        repr(step),
        "train" in step.needs,
        step.lowers,
        step.builds,
        step.restarts,
        tuple(map(_told, inner)),
    )
