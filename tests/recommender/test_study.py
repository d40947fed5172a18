"""Optuna's part: what survives a kill, what mattered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_fixtures import fresh_model, make_context, small_digits

from compress.parts import Choices
from compress.recommender.draw import AtRandom
from compress.recommender.goal import Goal
from compress.recommender.measured import NO_TIME, OK, Notebook, Trial
from compress.recommender.question import Request
from compress.recommender.search import _Search
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.recommender.study import LEAST, Study
from compress.recommender.warm import draws_to_resume
from compress.techniques import techniques

VALUES = {
    "prune_channels": {"criterion": "l2", "scope": Choices(("local", "global"))},
    "quantize": {"max_drop": 0.5},
}


@pytest.fixture(scope="module")
def space() -> Space:
    data = small_digits()
    model = fresh_model(data)
    context = replace(make_context(data, teacher=model), enters=model)
    forms = Wishes(only=tuple(VALUES), values=VALUES).forms(techniques(), ())
    return space_of(forms, context)


def answered(study: Study, count: int) -> None:
    for _ in range(count):
        asked = study.ask()
        value = float(asked.params.get("prune_channels.macs", 1.0))  # type: ignore[arg-type]
        study.tell(asked, value, -1.0, {"cost": value})


def test_equal_seeds_draw_alike_and_others_do_not(space: Space) -> None:
    def drawn(seed: int) -> list[object]:
        study = Study(space, seed)
        found = []
        for _ in range(12):
            asked = study.ask()
            found.append(dict(asked.params))
            study.tell(asked, float(len(found)))
        return found

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_the_sampler_learns(space: Space) -> None:
    study = Study(space, 0)
    answered(study, 60)
    late = [t.params.get("prune_channels.macs", 1.0) for t in study._answered()[30:]]
    early = [t.params.get("prune_channels.macs", 1.0) for t in study._answered()[:10]]
    assert np.mean(late) < np.mean(early)


def test_what_is_enqueued_comes_first(space: Space) -> None:
    study = Study(space, 0)
    _, params = space.draw(AtRandom(np.random.default_rng(7)), 1)
    study.enqueue([params], "warm start")
    asked = study.ask()
    assert (dict(asked.params), asked.drawn) == (dict(params), "warm start")
    assert study.ask().drawn == ""


def test_a_killed_process_leaves_its_draw_to_the_next(space: Space, tmp_path: Path) -> None:
    place = tmp_path / "study.jsonl"
    study = Study(space, 0, place)
    answered(study, 5)
    lost = study.ask()
    with open(place, "ab") as file:
        file.write(b'{"op_code": 5, "wor')  # killed while it wrote
    again = Study(space, 0, place)
    assert again.resume() == [dict(lost.params)]
    assert len(again._answered()) == 5
    assert again.resume() == []
    answered(again, 2)
    assert len(Study(space, 0, place)._answered()) == 7


def test_what_mattered_is_what_the_figure_depends_on(space: Space) -> None:
    study = Study(space, 0)
    answered(study, 60)
    shares = study.importances("cost")
    options = {n: s for n, s in shares.items() if n.startswith("prune_channels.")}
    assert options["prune_channels.macs"] > options["prune_channels.scope"]
    assert sum(options.values()) == pytest.approx(1.0)
    assert study.importances("nothing") == {}


def test_few_trials_say_nothing_of_what_mattered(space: Space) -> None:
    study = Study(space, 0)
    answered(study, LEAST - 1)
    assert study.importances("cost") == {}


def test_what_comes_next_leaves_the_study_as_it_is(space: Space, tmp_path: Path) -> None:
    place = tmp_path / "study.jsonl"
    study = Study(space, 0, place)
    answered(study, 10)
    before = place.read_bytes()
    found = study.upcoming(set(), 4, set(), 3)
    assert len(found) == len(set(found)) == 3
    assert not set(study.upcoming(set(found), 4, set(), 3)) & set(found)
    assert not any("prune" in text for text in study.upcoming(set(), 4, {"prune_channels"}, 3))
    assert place.read_bytes() == before


def test_what_came_too_late_comes_next(space: Space, tmp_path: Path) -> None:
    study, book = Study(space, 0, tmp_path / "study.jsonl"), Notebook()
    answered(study, 10)
    generator = np.random.default_rng(1)
    for number, state in enumerate((OK, NO_TIME, NO_TIME)):
        chain, params = space.draw(AtRandom(generator), 4)
        book.add(Trial(number, params, repr(chain), state))
    run = object.__new__(_Search)
    run.study, run.notebook, run.space, run.idle = study, book, space, set()
    run.about, run.earlier, run.started = {"epochs": 4}, 0.0, 0.0
    run.request = Request(Goal(), Wishes())
    data = SimpleNamespace(task=SimpleNamespace(name="digits"), untrainable="")
    run.plan = SimpleNamespace(suite=SimpleNamespace(model="mlp"), data=data, baseline=None)  # type: ignore[assignment]
    told = run._story("the budget is spent", []).next
    again = Study(space, 0, tmp_path / "study.jsonl")
    for draws, why in draws_to_resume(space, again, book):
        again.enqueue(draws, why)
    first = [repr(space.chain(again.ask().params, 4)) for _ in range(2)]
    assert list(told[:2]) == first == [trial.chain for trial in book.trials[1:]]
    assert book.trials[0].chain not in told
