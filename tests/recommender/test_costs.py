"""The cost model: what steps will take, by what they took."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from bench_fixtures import fresh_model, make_context, small_digits

from compress import counts
from compress.recommender.cost import BESIDE, MEASURE, QUICK, CostModel
from compress.recommender.lab import BenchLab
from compress.results.record import BASELINE
from compress.techniques import chain as parse

DISTILL, FINETUNE = parse("distill(epochs=4)"), parse("finetune(epochs=2)")


def test_without_anything_seen_the_probe_counts() -> None:
    costs = CostModel(unit_seconds=10.0, measure_seconds=7.0)
    assert costs.seconds(DISTILL, 0.5) == pytest.approx(4 * (0.5 + BESIDE) * 10)
    assert costs.seconds(parse("quantize()"), 0.5) == QUICK
    assert costs.measuring() == 7.0
    assert costs.epoch() == pytest.approx(10 * (1 + BESIDE))


def test_a_second_look_counts_if_it_is_the_shorter_one_until_a_training_has_run() -> None:
    costs = CostModel(unit_seconds=100.0)
    assert not costs.look_again(lambda: 300.0)
    assert not costs.look_again(lambda: 80.0)
    assert costs.look_again(lambda: 20.0)
    assert costs.seconds(DISTILL, 0.5) == pytest.approx(4 * (0.5 + BESIDE) * 20)
    costs.learn(DISTILL, 46.0, 1.0)
    assert not costs.look_again(lambda: pytest.fail("it is known by now"))


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


def test_a_search_trains_several_nets_at_once() -> None:
    costs = CostModel(10.0)
    costs.learn(FINETUNE, 2 * 1.15 * 20, 1.0)  # 20 s a unit
    supernet = parse("search(macs=0.4, epochs=3, subnets=2)")
    assert costs.seconds(supernet, 0.4) == pytest.approx(3 * (1 + 3 * 0.4 + BESIDE) * 20)
    family = parse("search(macs=0.4, epochs=6, family='resnet', candidates=8)")
    # Four rounds of halving, each of which takes half as long as the best one's training.
    assert costs.seconds(family, 0.4) == pytest.approx(6 * (0.4 * 2 + BESIDE) * 20)
    assert costs.seconds(parse("search(macs=0.4)"), 0.4) == QUICK


def test_other_steps_take_what_they_took() -> None:
    costs = CostModel(1.0)
    costs.learn(parse("prune_channels(macs=0.5)"), 2.0, 0.5)
    costs.learn(parse("prune_channels(macs=0.5)"), 4.0, 0.5)
    costs.learn(parse("prune_channels(macs=0.9)"), 9.0, 0.9)
    assert costs.seconds(parse("prune_channels(macs=0.5)"), 0.5) == 3.0
    assert costs.seconds(parse("prune_channels(macs=0.7)"), 0.7) == 5.0


def test_a_technique_that_was_not_seen_is_worth_a_try() -> None:
    costs = CostModel(1.0)
    costs.learn(parse("prune_channels(macs=0.5)"), 0.5, 0.5)
    costs.learn(parse("prune_channels(macs=0.7)"), 1.5, 0.5)
    costs.learn(parse("quantize()"), 3.0, 1.0)
    costs.taken[MEASURE].append(0.1)  # is no step
    assert costs.seconds(parse("factorize(macs=0.5)"), 0.5) == 1.0
    costs = CostModel(1.0)
    costs.learn(parse("quantize()"), 300.0, 1.0)
    assert costs.seconds(parse("factorize(macs=0.5)"), 0.5) == QUICK


def test_a_student_that_is_cut_afterwards_was_trained_whole() -> None:
    data = small_digits()
    model = fresh_model(data)
    context = replace(make_context(data, teacher=model), enters=model)
    student = context.student("cnn-small(width=8)")
    whole = 4 * counts.macs(student.module, student.example)
    lab = SimpleNamespace(
        records={BASELINE: SimpleNamespace(measured={"macs": whole})},
        plan=SimpleNamespace(check_context=context),
        built={},
    )
    taught, cut, recovered = parse(
        "distill(student='cnn-small(width=8)') -> prune_channels(macs=0.5) -> distill()"
    ).steps
    made = [BenchLab._made(lab, step, 0.125) for step in (taught, cut, recovered)]  # type: ignore[arg-type]
    assert made == [0.25, 0.125, 0.125]


def test_a_log_tells_of_steps_and_of_the_measuring() -> None:
    costs = CostModel(1.0)
    log = [
        {"kind": "note", "text": "x"},
        {"kind": "step", "step": "quantize()", "seconds": 6.0},
        {"kind": "step", "step": "someone else's", "seconds": 99.0},
        {"kind": "measuring", "seconds": 3.0},
    ]
    costs.learn_log("quantize()", [(parse("quantize()"), 1.0)], log)
    assert costs.seconds(parse("quantize()"), 1.0) == 6.0
    assert costs.measuring() == 3.0


def test_what_rows_share_is_learnt_once() -> None:
    costs = CostModel(1.0)
    student, cut = parse("distill(student='resnet8', epochs=2)"), parse("carve(ratio=0.5)")
    first = {"kind": "step", "step": repr(student), "seconds": 2 * 0.4 * 10}
    for n in range(3):
        line = {"kind": "step", "step": repr(cut), "seconds": 1.0 + n}
        measuring = {"kind": "measuring", "seconds": 2.0}
        made = [(student, 0.25), (cut, 0.1)]
        costs.learn_log(f"chain {n // 2}", made, [first, line, measuring])
    assert costs.units == {"distill": [pytest.approx(10.0)]}
    assert costs.taken[repr(cut)] == [1.0]
    assert costs.taken["measure"] == [2.0, 2.0]
