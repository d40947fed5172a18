"""The cost model: what steps will take, by what they took."""

from __future__ import annotations

import pytest

from compress.recommender.cost import BESIDE, QUICK, CostModel
from compress.techniques import chain as parse

DISTILL, FINETUNE = parse("distill(epochs=4)"), parse("finetune(epochs=2)")


def test_without_anything_seen_the_probe_counts() -> None:
    costs = CostModel(unit_seconds=10.0, measure_seconds=7.0)
    assert costs.seconds(DISTILL, 0.5) == pytest.approx(4 * (0.5 + BESIDE) * 10)
    assert costs.seconds(parse("quantize()"), 0.5) == QUICK
    assert costs.measuring() == 7.0
    assert costs.epoch() == pytest.approx(10 * (1 + BESIDE))


def test_trainings_scale_with_epochs_and_macs() -> None:
    costs = CostModel(1.0)
    costs.learn(DISTILL, 46.0, 1.0)  # 4 epochs of 1.15 units: 10 s a unit
    assert costs.seconds(parse("distill(epochs=8, loss=dkd())"), 1.0) == pytest.approx(92.0)
    assert costs.seconds(DISTILL, 0.25) == pytest.approx(4 * 0.4 * 10)
    # Another technique has its own seconds as soon as it was seen.
    assert costs.seconds(FINETUNE, 1.0) == pytest.approx(2 * 1.15 * 10)
    costs.learn(FINETUNE, 2 * 1.15 * 3, 1.0)
    assert costs.seconds(FINETUNE, 1.0) == pytest.approx(2 * 1.15 * 3)


def test_a_repeat_trains_as_often_as_it_repeats() -> None:
    costs = CostModel(10.0)
    one = parse("repeat(3, prune_channels(macs=0.5) -> finetune(epochs=2))")
    assert costs.seconds(one, 1.0) == pytest.approx(6 * 1.15 * 10)


def test_other_steps_take_what_they_took() -> None:
    costs = CostModel(1.0)
    costs.learn(parse("prune_channels(macs=0.5)"), 2.0, 0.5)
    costs.learn(parse("prune_channels(macs=0.5)"), 4.0, 0.5)
    costs.learn(parse("prune_channels(macs=0.9)"), 9.0, 0.9)
    assert costs.seconds(parse("prune_channels(macs=0.5)"), 0.5) == 3.0
    assert costs.seconds(parse("prune_channels(macs=0.7)"), 0.7) == 5.0


def test_a_log_tells_of_steps_and_of_the_measuring() -> None:
    costs = CostModel(1.0)
    log = [
        {"kind": "note", "text": "x"},
        {"kind": "step", "step": "quantize()", "seconds": 6.0},
        {"kind": "step", "step": "someone else's", "seconds": 99.0},
        {"kind": "measuring", "seconds": 3.0},
    ]
    costs.learn_log([parse("quantize()")], log, 1.0)
    assert costs.seconds(parse("quantize()"), 1.0) == 6.0
    assert costs.measuring() == 3.0
