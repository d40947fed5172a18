"""How often teachers are right on a run's data, before anything learns from them."""

from __future__ import annotations

from collections.abc import Iterator

from compress.benchmark.plan.plan import Plan
from compress.results.doubt import doubt_of
from compress.system.progress import stage
from compress.training.evaluate import accuracy, some_of

ITEMS = 256
"""Of the validation split: enough to tell a teacher from a guess."""


def judged_teachers(plan: Plan) -> Iterator[str]:
    """Yield a sentence about each teacher that the plan names: how often it is right."""
    task, some = plan.data.task, some_of(plan.data.validation, ITEMS)
    for name, model in plan.teachers.items():
        with stage(f"trying teacher {name!r} on {len(some):,} validation {task.unit}"):
            share = accuracy(model.module, task, some)
        doubt = doubt_of(round(share * len(some)), len(some), task.output_shape()[0])
        said = f"right on {share:.1%} of {len(some):,} validation {task.unit}"
        yield f"DOUBTFUL TEACHER {name!r}: {doubt}" if doubt else f"teacher {name!r}: {said}"
