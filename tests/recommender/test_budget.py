"""How a budget is divided, and why one is refused or nothing was tried in it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits

from compress.errors import UserError
from compress.recommender.budget import (
    OVER_TIMING,
    REPORTS,
    STARTING,
    Ending,
    check_budget,
    ending_of,
    final_timing,
    quick_timing,
    quickest_trial,
    timing_within,
    why_nothing,
)
from compress.recommender.cost import QUICK, CostModel
from compress.recommender.forms import BUILD
from compress.recommender.probe import EAGER, Probe
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.techniques import chain as parse
from compress.techniques import techniques

PROBE = Probe(forward=0.02, training=0.05)


def plan(baseline: str | None = "train(epochs=3)", device: str = "cpu") -> Any:
    """A plan of 100 training items and 50 to measure on."""
    return SimpleNamespace(
        baseline=None if baseline is None else parse(baseline),
        device=torch.device(device),
        data=SimpleNamespace(train=range(100), test=range(50)),
    )


def lab(costs: CostModel, items: int) -> Any:
    """A lab whose baseline took 4 s of training and 2 s of measuring."""
    log = [{"kind": kind, "seconds": n} for kind, n in (("step", 4.0), ("measuring", 2.0))]
    records = {"baseline": SimpleNamespace(log=[{"kind": "epoch"}, *log])}
    return SimpleNamespace(costs=costs, baseline=SimpleNamespace(items=items), records=records)


def test_only_a_training_here_takes_the_time_of_one() -> None:
    assert PROBE.making(plan()) == pytest.approx(3 * 100 * 0.05)
    assert PROBE.making(plan(device="cuda")) == 0
    assert PROBE.making(plan(None)) == 0


def test_a_budget_is_for_the_baseline_a_trial_and_its_finals() -> None:
    # Both the baseline and one chain are measured on the 50 items, and on 200 of the test split.
    measured = 2 * (50 + 200) * PROBE.forward / EAGER
    least = 7.0 + 15.0 + measured + QUICK + OVER_TIMING * 6.0 + REPORTS
    check_budget(plan(), PROBE, 200, 6.0, least + 0.1, 7.0, made=False)
    with pytest.raises(UserError, match=r"to make the baseline, to try one chain.*Give at least"):
        check_budget(plan(), PROBE, 200, 6.0, least - 0.1, 7.0, made=False)
    # Its training and its answers of an earlier run are there.
    less = least - 15.0 - 50 * PROBE.forward / EAGER
    check_budget(plan(), PROBE, 200, 6.0, less + 0.1, 7.0, made=True)
    with pytest.raises(UserError, match="is too small: to try one chain, to test"):
        check_budget(plan(), PROBE, 200, 6.0, less - 0.1, 7.0, made=True)


def test_an_item_takes_no_longer_than_rows_did_that_were_measured() -> None:
    costs = CostModel(1.0)
    costs.taken["measure"] += [2.0, 2.0]
    slow = Probe(forward=1.0, training=1.0)
    found = ending_of(lab(costs, 50), slow, 200, 3.0, 6.0)
    assert found == Ending(3.0, 2.0 + 200 * 2.0 / 50, 6.0)
    quick = ending_of(lab(costs, 50), Probe(0.001, 1.0), 200, 3.0, 6.0)
    assert quick.row == pytest.approx(2.0 + 200 * 0.001 / EAGER)


def test_the_end_starts_as_quickly_as_the_search_did_without_its_baseline() -> None:
    def starting(begun: float) -> float:
        return ending_of(lab(CostModel(1.0), 50), PROBE, 200, begun, 6.0).starting

    assert starting(3.0) == 3.0  # the baseline lay in the store
    assert starting(7.5) == pytest.approx(1.5)
    assert starting(500.0) == STARTING


def test_the_end_has_time_for_as_many_finalists_as_the_budget() -> None:
    end = Ending(starting=2.0, row=3.0, timing=10.0)
    assert end.measuring(4) == pytest.approx(2.0 + 5 * 3.0 + REPORTS)
    assert end.seconds(4) == pytest.approx(end.measuring(4) + OVER_TIMING * 10.0)
    assert [end.finalists(4, end.seconds(n) + 0.1) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert end.finalists(4, 0.0) == 1
    assert end.finalists(2, 1e6) == 2


def test_the_quickest_trial_makes_the_model_cheaper() -> None:
    data = small_digits()
    model = fresh_model(data)
    context = replace(make_context(data, teacher=model), enters=model)

    def space(*only: str) -> Space:
        return space_of(Wishes(only=only).forms(techniques(), ("mlp(width=8)",)), context)

    costs = CostModel(unit_seconds=0.001, measure_seconds=2.0)
    costs.taken["prune_channels"] += [4.0]
    costs.taken["quantize"] += [9.0]
    found = quickest_trial(space("finetune", "distill", "prune_channels", "quantize"), costs, 1.5)
    assert found == pytest.approx(4.0 + 2.0 + 1.5)
    [student] = space("distill").of(BUILD)
    alone = costs.seconds(student.sample, 1.0)
    assert quickest_trial(space("distill"), costs, 1.5) == pytest.approx(alone + 2.0 + 1.5)


def test_why_nothing_was_tried() -> None:
    assert why_nothing(50.0, 12.0, 24.0, 14.0) == (
        "of 50 s, 12 s had passed when the baseline was measured, 24 s are reserved to test and to "
        "time finalists, and the quickest trial takes about 14 s. Give a larger budget, to go on"
    )


def test_timings_suit_the_budget() -> None:
    assert [quick_timing(seconds) for seconds in (60.0, 500.0, 1e5)] == [1.0, 3.0, 6.0]
    assert [final_timing(seconds, None) for seconds in (30.0, 200.0, 1e5)] == [6.0, 20.0, 60.0]
    assert final_timing(200.0, 0.5) == 0.5


def test_what_a_search_took_too_long_is_taken_from_the_finals_timing() -> None:
    assert timing_within(60.0, 1000.0) == 60.0
    assert timing_within(60.0, 30.0) == pytest.approx(25.0)  # processes have to start, too
    assert timing_within(60.0, -5.0) == 1.0
    assert timing_within(0.5, -5.0) == 0.5
