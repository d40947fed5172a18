"""Whether a row was shown to lose less than the margin, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compress.results.derive import points
from compress.results.seeds import over_seeds, seeds_of
from compress.results.table import Row, is_sound, number, text_of
from compress.stats.verdicts import BETTER, EQUIVALENT
from compress.system.amounts import decimal


def why_not_equivalent(rows: Iterable[Row], about: Mapping[str, Any], chain: str) -> str:
    """Return why a chain's row (over all seeds) is not equivalent within the margin; '' if it is.

    A better one is. Raises KeyError for a chain that has no row.
    """
    single = list(rows)
    merged = over_seeds(single, about) if len(seeds_of(single)) > 1 else single
    row = {text_of(row, "chain"): row for row in merged}[chain]
    if text_of(row, "accuracy_verdict") in (BETTER, EQUIVALENT):
        return ""
    said = f"{chain} is not shown to be equivalent within {points(about['margin'])}: "
    if not is_sound(row):
        error = text_of(row, "error")
        return said + f"its row is {text_of(row, 'status')}" + (f" ({error})" if error else "")
    delta, bound = number(row, "accuracy_delta"), number(row, "accuracy_bound")
    if delta is None or bound is None:
        reasons = row.get("missing") or {}
        return said + str(reasons.get("accuracy_verdict") or "it has no comparison")
    return said + (
        f"its accuracy differs from the baseline's by {100 * delta:+.2f} points, and by the lower "
        f"95 % bound it may differ by {100 * bound:+.2f} "
        f"(p {decimal(row['equivalence_p'], 2)} before the adjustment for the number of rows)"
    )
