"""Where a search begins: chains that are known to be good, by what their steps are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compress.errors import UserError
from compress.parts import Choices, Range, is_number
from compress.recommender.draw import Params, Preferred, Value
from compress.recommender.folder import TRIALS
from compress.recommender.forms import BUILD, CUT, LOWER, RECOVER, Form
from compress.recommender.goal import FIGURES, Goal
from compress.recommender.measured import NO_TIME, OK, Measured, Notebook
from compress.recommender.space import NONE, Space
from compress.recommender.study import Study

LATE = "no time before"
"""Why a draw comes first that there was no time for."""
GENTLE, USUAL = 0.8, 0.5
"""Shares of the ranges of what is kept."""


def draws_to_resume(
    space: Space, study: Study, notebook: Notebook
) -> Iterator[tuple[list[Params], str]]:
    """Yield draws that come first, and why: the interrupted ones, and those without time before."""
    tried = [dict(trial.params) for trial in notebook.trials if trial.state != NO_TIME]
    interrupted = [params for params in study.resume() if params and _possible(space, params)]
    for draws, why in ((interrupted, "interrupted"), (notebook.late, LATE)):
        fresh = [params for params in draws if dict(params) not in tried]
        yield fresh, why
        tried += [dict(params) for params in fresh]


def good_draws(folders: Sequence[Path], goal: Goal, count: int) -> list[Params]:
    """Return the best draws of earlier searches, some of each.

    The cheapest by the goal at no great loss; within a latency, the most accurate that hold it,
    then the fastest.
    """
    found = []
    for folder in folders:
        trials = Notebook.read(folder / TRIALS).trials
        ended = [(t, t.last) for t in trials if t.last is not None and t.state == OK]
        if goal.max_drop is not None:
            ended = [(t, last) for t, last in ended if 100 * -last.change < goal.max_drop]
        ended.sort(key=lambda pair: _behind(pair[1], goal))
        found += [trial.params for trial, _ in ended[:count]]
    return found


def _behind(one: Measured, goal: Goal) -> tuple[float, ...]:
    """Return the key that sorts chains of one earlier search, the best by a goal first."""
    if goal.target_ms is not None:
        ms = one.ms or math.inf
        return (0.0, -one.change) if ms <= goal.target_ms else (1.0, ms)
    if goal.times:
        return (-(one.speedup or 0.0),)
    return (getattr(one, FIGURES[goal.by]) or math.inf,)


def lowering_alone(space: Space) -> list[Params]:
    """Return the draw of each lowering with nothing before it, the usual one first."""
    return [_drawn(space, _end(form.name)) for form in space.of(LOWER)]


def warm_start(space: Space, lowered: bool, earlier: Sequence[Params] = ()) -> list[Params]:
    """Return the draws that come after lowering alone, and end in it where it is worth it.

    What was good in `earlier` searches; then a cut that keeps much, without recovery; a student; a
    cut that keeps about half, with recovery (by a teacher where there is one).
    """
    recovery = _first(_by_teachers(space.of(RECOVER)))
    end = _end(_first(space.of(LOWER)) if lowered else NONE)
    cuts = space.of(CUT)
    wishes: list[dict[str, Value]] = [{**end, **_cut(form, NONE, GENTLE)} for form in cuts]
    wishes += [{**end, "student": form.name} for form in space.of(BUILD)]
    wishes += [{**end, **_cut(form, recovery, USUAL)} for form in cuts] if recovery != NONE else []
    known = [params for params in earlier if _possible(space, params)]
    return _different([*known, *(_drawn(space, wish) for wish in wishes)])


def _end(lower: str) -> dict[str, Value]:
    return {"lowering": lower, "alone": lower}  # only one of them is asked for


def _cut(form: Form, recovery: str, kept: float) -> Mapping[str, Value]:
    shares = {
        f"{form.name}.{name}": _at(values, 1 - kept if _removes(form, name) else kept)
        for name, values in form.options.items()
    }
    return {"cut": form.name, "cut alone": form.name, "recovery": recovery, **shares}


def _removes(form: Form, name: str) -> bool:
    """Whether an option is what a cut takes away: halfway there (`Compressor.at`) it is less."""
    step = form.sample
    value = getattr(step, name)
    return is_number(value) and getattr(step.at(0.5), name) < value


def _at(values: Range | Choices, kept: float) -> Value:
    """Return the share of a range; among numbers that are listed, the one that lies there."""
    if isinstance(values, Range) or not all(map(is_number, values.values)):
        return kept
    ordered = sorted(values.values)
    found: float = ordered[min(int(kept * len(ordered)), len(ordered) - 1)]
    return found


def _drawn(space: Space, wish: Mapping[str, Value]) -> Params:
    return space.draw(Preferred(wish), 1)[1]


def _by_teachers(forms: Sequence[Form]) -> list[Form]:
    return sorted(forms, key=lambda form: not form.sample.teachers)


def _first(forms: Sequence[Form]) -> str:
    return forms[0].name if forms else NONE


def _possible(space: Space, params: Params) -> bool:
    try:
        space.chain(params, 1)
    except (KeyError, UserError):
        return False
    return True


def _different(draws: Sequence[Params]) -> list[Params]:
    found: list[Params] = []
    for params in draws:
        if dict(params) not in [dict(one) for one in found]:
            found.append(params)
    return found
