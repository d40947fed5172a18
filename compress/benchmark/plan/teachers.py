"""How often models with weights are right on a run's data, before anything learns from them."""

from __future__ import annotations

from collections.abc import Iterator

from compress.benchmark.plan.plan import Plan
from compress.results.doubt import doubt_of
from compress.system.progress import stage
from compress.training.evaluate import accuracy, some_of

ITEMS = 256
"""Of the validation split: enough to tell a teacher from a guess."""


def judged_weights(plan: Plan) -> Iterator[str]:
    """Yield a sentence if the weights that the baseline trains on are not as right as they should.

    Weights that are the baseline as they are, its row judges; a new head knows nothing yet.
    """
    if plan.baseline is None or plan.baseline.restarts or not plan.whole:
        return
    task, some = plan.data.task, some_of(plan.data.validation, ITEMS)
    with stage(f"trying the weights on {len(some):,} validation {task.unit}"):
        share = accuracy(plan.start.module, task, some)
    right, [classes] = round(share * len(some)), task.output_shape()
    if doubt := doubt_of(right, len(some), classes, plan.promised):
        yield f"DOUBTFUL WEIGHTS, before {plan.baseline!r}: {doubt}"


def judged_teachers(plan: Plan) -> Iterator[str]:
    """Yield a sentence about each teacher that the plan names: how often it is right."""
    for name, model in plan.teachers.items():
        task, some = plan.data.task, some_of(plan.data.validation, ITEMS)
        if model.sight is not None:
            task, some = model.sight.task, model.sight.of(some)
        with stage(f"trying teacher {name!r} on {len(some):,} validation {task.unit}"):
            share = accuracy(model.module, task, some)
        doubt = doubt_of(round(share * len(some)), len(some), task.output_shape()[0])
        said = f"right on {share:.1%} of {len(some):,} validation {task.unit}"
        yield f"DOUBTFUL TEACHER {name!r}: {doubt}" if doubt else f"teacher {name!r}: {said}"
