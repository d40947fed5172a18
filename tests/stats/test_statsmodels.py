"""Our statistics beside those of statsmodels, on random tables."""

from __future__ import annotations

import numpy as np
import pytest

from compress.stats.pairs import difference
from compress.stats.proportions import wilson
from compress.stats.verdicts import holm


@pytest.mark.parametrize("seed", range(40))
def test_mcnemar_and_wilson_on_random_tables(seed: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as theirs
    from statsmodels.stats.proportion import proportion_confint

    random = np.random.default_rng(seed)
    count = int(random.integers(1, 3000))
    before = random.random(count) < random.random()
    # From files that hardly ever differ to files that have nothing to do with each other.
    after = np.where(
        random.random(count) < random.random() ** 3, random.random(count) < 0.5, before
    )
    table = [
        [int((before & after).sum()), int((before & ~after).sum())],
        [int((~before & after).sum()), int((~before & ~after).sum())],
    ]
    found = difference(before, after)
    assert (found.lost, found.gained) == (table[0][1], table[1][0])
    assert found.p == pytest.approx(theirs(table, exact=True).pvalue, rel=1e-9)
    right = int(after.sum())
    assert wilson(right, count) == pytest.approx(
        proportion_confint(right, count, 0.05, method="wilson"), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_holm_on_random_p_values(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    random = np.random.default_rng(seed)
    given = (random.random(int(random.integers(1, 30))) ** 3).tolist()
    assert holm(given) == pytest.approx(multipletests(given, method="holm")[1].tolist())
