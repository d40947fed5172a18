"""How often is a row called equivalent that lost as much as the margin? And one that lost nothing?

    python benchmarks/measurement/equivalence.py --out reports/measurement

For one seed nothing is drawn: the probabilities of all tables of items lost and gained are summed.
Tables of several seeds are drawn.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, norm
from trials import table

from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference, constrained_error, score
from compress.stats.replication import mean_noninferiority_p
from compress.system.files import write_atomic

ITEMS = (200, 360, 1000, 10_000)
MARGINS = (0.005, 0.0075, 0.01, 0.02, 0.05)
DISCORDANCES = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
"""Shares of the items that flip."""
ROWS = (1, 20)
"""Of a table: Holm's procedure asks ALPHA / rows of the surest."""
BETWEEN = (0.0, 0.002, 0.004)
"""Standard deviations of the falls of the seeds."""
SEEDS = (3, 5)
TRIALS = 4000

Statistic = Callable[[Any, Any, int, float], Any]


def bonett_price(lost: Any, gained: Any, items: int, difference: float) -> Any:
    """The standard error of the two-sided interval of the tables."""
    total = items + 2
    gain, loss = (gained + 1) / total, (lost + 1) / total
    return (gain - loss - difference) / np.sqrt((gain + loss - (gain - loss) ** 2) / total)


def tango(lost: Any, gained: Any, items: int, difference: float) -> Any:
    distance = gained - lost - items * difference
    return distance / constrained_error(lost, gained, items, difference)


STATISTICS: dict[str, Statistic] = {
    "Bonett-Price": bonett_price,
    "Tango": tango,
    "Tango less half an item": score,
}


def claims(
    statistic: Statistic, items: int, discordance: float, fall: float, margin: float, level: float
) -> float:
    """Return how often equivalence within the margin is claimed if accuracy falls by `fall`."""
    loss, gain = (discordance + fall) / 2, max((discordance - fall) / 2, 0.0)
    tails = np.array([1e-10, 1 - 1e-10])
    lost, gained = (
        np.arange(low, high + 1.0)
        for low, high in (binom.ppf(tails, items, share) for share in (loss, gain))
    )
    lost, gained = lost[:, None], gained[None, :]
    chances = binom.pmf(lost, items, loss) * binom.pmf(gained, items - lost, gain / (1 - loss))
    shown = statistic(lost, gained, items, -margin) > norm.isf(level)
    return float(chances[shown].sum())


def one_seed() -> Iterator[dict[str, Any]]:
    for items, margin, discordance, rows in itertools.product(ITEMS, MARGINS, DISCORDANCES, ROWS):
        if discordance < margin:
            continue
        found: dict[str, Any] = {
            "items": items,
            "margin": margin,
            "discordance": discordance,
            "rows": rows,
        }
        for (name, statistic), fall in itertools.product(STATISTICS.items(), (margin, 0.0)):
            what = "false" if fall else "found"
            share = claims(statistic, items, discordance, fall, margin, ALPHA / rows)
            found[f"{what}, {name}"] = share
        yield found


def seeds_claim(items: int, seeds: int, between: float, alike: bool, margin: float) -> float:
    """Return how often seeds that fall by the margin on average are called equivalent.

    2 % of the items flip. If the seeds are `alike`, the same ones do in all of them.
    """
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(TRIALS):
        falls = np.clip(generator.normal(margin, between, seeds), -0.02, 0.02)
        places = generator.random((1 if alike else seeds, items))
        lost = (places < (0.02 + falls[:, None]) / 2).sum(1)
        gained = (places > 1 - (0.02 - falls[:, None]) / 2).sum(1)
        found = [Difference(int(a), int(b), items) for a, b in zip(lost, gained, strict=True)]
        count += mean_noninferiority_p(found, margin) <= ALPHA
    return count / TRIALS


def worst(found: list[dict[str, Any]]) -> Iterator[list[object]]:
    for items, rows in itertools.product(ITEMS, ROWS):
        group = [one for one in found if (one["items"], one["rows"]) == (items, rows)]
        most = [max(one[f"false, {name}"] for one in group) for name in STATISTICS]
        yield [items, rows, f"{ALPHA / rows:.2%}", *(f"{share:.2%}" for share in most)]


def at_one_point(found: list[dict[str, Any]]) -> Iterator[list[object]]:
    for one in found:
        if one["margin"] == 0.01 and one["rows"] == 1 and one["items"] != 360:
            cells = [
                f"{one[f'false, {name}']:.1%} / {one[f'found, {name}']:.1%}" for name in STATISTICS
            ]
            yield [one["items"], f"{one['discordance']:.2%}", *cells]


def of_seeds() -> Iterator[list[object]]:
    for items, seeds, alike in itertools.product((1000, 10_000), SEEDS, (False, True)):
        shares = [seeds_claim(items, seeds, between, alike, 0.01) for between in BETWEEN]
        yield [items, seeds, "the same" if alike else "others", *(f"{s:.1%}" for s in shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = list(one_seed())
    lines = io.StringIO()
    writer = csv.DictWriter(lines, found[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: round(value, 5) for key, value in one.items()} for one in found)
    write_atomic(options.out / "equivalence.csv", lines.getvalue())
    body = "\n".join(
        [
            "# Equivalence within a margin: how often it is claimed\n",
            "False claims where accuracy falls by the margin exactly: the most over margins of"
            " 0.5 to 5 points and 0.5 to 10 % of the items that flip (all of them are in"
            " `equivalence.csv`). Beside other rows, Holm's procedure asks for a smaller level.\n",
            table(("items", "rows", "level", *STATISTICS), worst(found)),
            "At a margin of one point and the level of 5 %: false claims / claims where accuracy"
            " is the same.\n",
            table(("items", "flip", *STATISTICS), at_one_point(found)),
            "The last is what tables use. Several seeds, whose accuracies fall by the margin of"
            " one point on average; 2 % of the items flip, in every seed the same ones or others;"
            f" false claims in {TRIALS} trials, by the standard deviation of the seeds' falls."
            " Items and seeds are both drawn anew, and the rule tests for each of these by itself:"
            " where both matter as much and the same items flip, it claims too much.\n",
            table(
                ("items", "seeds", "flip", *(f"sd {100 * sd:.1f} pt" for sd in BETWEEN)),
                of_seeds(),
            ),
            "This gives it:"
            " `python benchmarks/measurement/equivalence.py --out reports/measurement`\n",
        ]
    )
    write_atomic(options.out / "equivalence.md", body)
    print(body)


if __name__ == "__main__":
    main()
