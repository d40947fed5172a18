"""A space of real techniques, and a search of it in a lab where everything is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench_fixtures import fresh_model, make_context, small_digits
from made_lab import BASE, MadeLab

from compress.parts import Choices
from compress.recommender.engine import Engine
from compress.recommender.goal import Goal, Judge
from compress.recommender.measured import (
    Notebook,
)
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.recommender.study import Study
from compress.recommender.warm import warm_start
from compress.techniques import techniques

EPOCHS = 8
VALUES = {
    "prune_channels": {"macs": Choices((0.9, 0.7, 0.5, 0.3)), "criterion": "l2", "scope": "local"},
    "factorize": {"macs": Choices((0.8, 0.5))},
    "distill": {"loss": "kd", "learning_rate": 0.001},
    "quantize": {"max_drop": 0.5},
}
ONLY = tuple(VALUES)
HALF = {
    "student": "none",
    "cut": "prune_channels",
    "prune_channels.macs": 0.5,
    "after prune_channels": "none",
    "recovery": "distill",
    "lowering": "none",
}
"""A draw: a cut to a half, and a recovery."""


def made_space(values: Mapping[str, Mapping[str, object]] = VALUES) -> Space:
    """Return the space of some techniques, with these options."""
    data = small_digits()
    model = fresh_model(data)
    context = replace(make_context(data, teacher=model), enters=model)
    forms = Wishes(only=tuple(values), values=values).forms(techniques(), ("cnn-small(width=8)",))
    return space_of(forms, context)


def engine(space: Space, lab: MadeLab, deadline: float = 1e9, **options: object) -> Engine:
    goal = options.pop("goal", Goal(max_drop=1.0))
    judge = Judge(goal, BASE, int(options.pop("test_items", 10_000)))  # type: ignore[arg-type]
    study = options.pop("study", None) or Study(space, int(options.pop("seed", 0)))  # type: ignore[call-overload]
    notebook = options.pop("notebook", Notebook())
    run = Engine(space, judge, lab, study, notebook, deadline, EPOCHS, **options)  # type: ignore[arg-type]
    run.warm = lambda lowered: warm_start(space, lowered)
    return run
