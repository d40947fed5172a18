"""Where a search begins: chains that are known to be good, by what their steps are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.errors import UserError
from compress.recommender.draw import Params, Preferred, Value
from compress.recommender.forms import BUILD, CUT, LOWER, RECOVER, Form
from compress.recommender.space import NONE, Space

GENTLE, USUAL = 0.8, 0.5
"""Shares of the ranges of what is kept."""


def warm_start(space: Space, earlier: Sequence[Params] = ()) -> list[Params]:
    """Return the draws that a search begins with.

    Lowering alone; then, each followed by the first lowering: a cut that keeps much, without
    recovery; a student; a cut that keeps about half, with recovery (by a teacher where there is
    one). In front of all but the first, what was good in `earlier` searches.
    """
    lower = _first(space.of(LOWER))
    recovery = _first(_by_teachers(space.of(RECOVER)))
    # Only one of 'alone' and 'lowering' is asked for.
    end: dict[str, Value] = {"lowering": lower, "alone": lower}
    wishes: list[dict[str, Value]] = [dict(end)] if space.of(LOWER) else []
    cuts = space.of(CUT)
    wishes += [{**end, **_cut(form, NONE, GENTLE)} for form in cuts]
    wishes += [{**end, "student": form.name} for form in space.of(BUILD)]
    wishes += [{**end, **_cut(form, recovery, USUAL)} for form in cuts] if recovery != NONE else []
    draws = [_drawn(space, wish) for wish in wishes]
    known = [params for params in earlier if _possible(space, params)]
    return _different([*draws[:1], *known, *draws[1:]])


def _cut(form: Form, recovery: str, kept: float) -> Mapping[str, Value]:
    shares = {f"{form.name}.{name}": kept for name in form.options}
    return {"cut": form.name, "cut alone": form.name, "recovery": recovery, **shares}


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
