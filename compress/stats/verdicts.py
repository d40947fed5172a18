"""Verdicts in words. Each function judges all rows of a table on one question together (Holm)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compress.stats.levels import ALPHA
from compress.stats.multiplicity import holm
from compress.stats.ratios import Ratio, minimum_effect_p

BETTER, WORSE, EQUIVALENT, NOT_SHOWN = "better", "worse", "equivalent", "not shown"
FASTER, SLOWER, INDISTINGUISHABLE = "faster", "slower", "indistinguishable"
MIXED = "mixed"


def difference_verdicts(values: Sequence[float], ps: Sequence[float]) -> list[str]:
    """Return better, worse or not shown, from differences and their p-values."""
    return [
        NOT_SHOWN if p > ALPHA else BETTER if value > 0 else WORSE
        for value, p in zip(values, holm(ps), strict=True)
    ]


def equivalence_verdicts(
    values: Sequence[float], ps: Sequence[float], noninferiority_ps: Sequence[float]
) -> list[str]:
    """Return better, equivalent, worse or not shown, from differences and their p-values.

    `ps` test each difference against 0, `noninferiority_ps` against -margin. These are two
    questions, so Holm's procedure runs over each by itself, and each has no false claim in any row
    with 95 %.

    The first that applies: *better*, if that is shown; *equivalent*, if a loss of the margin or
    more is ruled out; *worse*, if that is shown; else *not shown*. So a row that is surely worse,
    and surely by less than the margin, is equivalent: that is what a margin is for, and the
    interval tells how much it lost.
    """
    found = difference_verdicts(values, ps)
    within = [p <= ALPHA for p in holm(noninferiority_ps)]
    return [
        EQUIVALENT if inside and verdict != BETTER else verdict
        for verdict, inside in zip(found, within, strict=True)
    ]


def speed_verdicts(ratios: Sequence[Ratio], bar: float, trusted: bool) -> list[str]:
    """Return faster, slower or indistinguishable, from speed-ups and their control's `bar`.

    Where the control is not to be trusted, what does not exceed the bar has no verdict: ''.
    """
    neither = INDISTINGUISHABLE if trusted else ""
    adjusted = holm([minimum_effect_p(ratio, bar) for ratio in ratios])
    return [
        neither if p > ALPHA else FASTER if ratio.value > 1 else SLOWER
        for ratio, p in zip(ratios, adjusted, strict=True)
    ]


def common_verdict(verdicts: Iterable[str]) -> str:
    """Return what all seeds' verdicts are, `mixed` if they differ, '' if any has none."""
    found = set(verdicts)
    if not found or "" in found:
        return ""
    return found.pop() if len(found) == 1 else MIXED
