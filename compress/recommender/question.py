"""What a search is for, what it may try, and what it found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.benchmark.plan.plan import Plan
from compress.model import weights_hash
from compress.recommender.goal import Goal
from compress.recommender.measured import Trial
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.report.layout import wrap
from compress.report.markup import WIDTH
from compress.techniques import techniques
from compress.zoo.students import plain_students, students_of


@dataclass(frozen=True)
class Request:
    """What is searched for, and how long."""

    goal: Goal
    wishes: Wishes = field(default_factory=Wishes)
    budget: float = 600.0
    """Seconds."""
    trials: int | None = None
    """At most so many, those of earlier runs included; each run is given its own number."""
    timing_seconds: float | None = None
    earlier: tuple[Path, ...] = ()
    """Folders of earlier searches on models like this one, whose best draws come first."""
    since: float = field(default_factory=time.monotonic)
    """When the budget began to run."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the search was called with, so that it can be taken up again."""


@dataclass(frozen=True)
class Found:
    """What a search found. `winner` is the chain that reached the goal on the test split, or ''."""

    out: Path
    sentence: str
    winner: str
    nearest: str
    """The chain whose file lies at the top of the folder: the winner, or what came nearest."""
    rows: tuple[dict[str, Any], ...]
    """Of the final run, on the test split."""
    trials: tuple[Trial, ...]
    optimism: Mapping[str, float]
    frontier: str = ""
    """What is cheap or accurate on validation items, as a table for a terminal."""

    def __str__(self) -> str:
        """Return what a terminal shows in the end."""
        what = "The chain" if self.winner else "The nearest chain"
        chain = wrap(f"{what}: {self.nearest}", WIDTH) if self.nearest else []
        told = "\n".join([*wrap(f"{self.sentence}.", WIDTH), *chain])
        return "\n\n".join(filter(None, [self.frontier, told]))


def space_for(plan: Plan, wishes: Wishes, by: str = "") -> Space:
    """Return the space of chains for a plan's data and model, to make something small (`by`).

    Raises UserError if none is left.
    """
    names = tuple(plan.suite.students)
    if plan.instance is None:
        model = plan.suite.model
        others = (*students_of(model), *plain_students(plan.start, model, plan.data.task))
        names = tuple(dict.fromkeys((*names, *others)))
    context = replace(plan.check_context, teacher=plan.start)
    if plan.data.untrainable:
        context = replace(context, train=None)
    wishes.check_students(techniques(), context)
    return space_of(wishes.forms(techniques(), names, by), context, wishes.longest, by)


def question_of(plan: Plan, request: Request, space: Space) -> dict[str, Any]:
    """Return what a search is about (JSON): with other answers to it, it is another search."""
    suite = asdict(replace(plan.suite, chains=(), splits=""))
    kept = {key: suite[key] for key in ("data", "model", "weights", "baseline", "seeds", "options")}
    return {
        **kept,
        "seeds": list(suite["seeds"]),
        "options": {key: repr(value) for key, value in suite["options"].items()},
        "content": [plan.data.identity(), plan.data.test_identity()],
        "start": weights_hash(plan.start.module) if plan.baseline is None else "",
        "goal": asdict(request.goal),
        "space": [[repr(form) for form in space.forms], space.longest],
    }


def cautions(plan: Plan) -> list[str]:
    """Return what a reader must know of the validation items."""
    found = []
    if plan.baseline is None or not plan.baseline.restarts:
        found.append(
            "The model came with weights. If its training has seen these validation items, changes "
            "measured on them are not those on new items: the finalists' table shows by how much."
        )
    if plan.data.untrainable:
        found.append(
            f"Nothing can be trained on this data ({plan.data.untrainable}): half of what is not "
            f"for testing served calibration, the rest the choice."
        )
    return found
