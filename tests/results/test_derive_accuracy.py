"""What follows from answers: against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import ITEMS, Written, answers, right

from compress.results.record import Record
from compress.stats.pairs import Difference
from compress.stats.proportions import wilson


def record(chain: str, seed: int = 0, status: str = "ok", **more: object) -> Record:
    return Record(chain, seed, status, {"train_samples": 10}, **more)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Written:
    return Written(tmp_path)


def test_a_file_by_itself(run: Written) -> None:
    run.row(record("baseline"), right(30))
    row = run.rows()["baseline 0"]
    assert (row["accuracy"], row["items"]) == (0.75, ITEMS)
    assert (row["accuracy_low"], row["accuracy_high"]) == wilson(30, ITEMS)
    # Confident by 0.75 in every answer, and right in as many.
    assert row["ece"] == 0.0
    assert row["accuracy_delta"] == 0.0
    assert "accuracy_verdict" not in row
    assert "top5" not in row


def test_one_class_in_97_of_100_items(tmp_path: Path) -> None:
    run = Written(tmp_path, task={"classes": ["sound", "broken"]})
    targets = np.r_[np.zeros(97, int), np.ones(3, int)]
    always = np.zeros(100, int)
    said = {**answers(targets == always, always), "targets": targets}
    run.row(record("baseline"), said)
    found = run.read()
    assert (found.rows[0]["accuracy"], found.rows[0]["balanced_accuracy"]) == (0.97, 0.5)
    assert found.about["class_counts"] == [97, 3]
    assert found.rows[0]["note"] == "the file gives every test item the same answer"


def test_ranks_are_top_5_accuracy(run: Written) -> None:
    run.row(record("baseline"), {**answers(right(8, 16)), "ranks": np.arange(16)})
    assert run.rows()["baseline 0"]["top5"] == 5 / 16


def test_confidence_that_is_no_number_has_no_calibration_error(run: Written) -> None:
    said = {**answers(right(9)), "confidence": np.full(ITEMS, np.nan)}
    run.row(record("baseline", missing={"ece": "not finite"}), said)
    row = run.rows()["baseline 0"]
    assert "ece" not in row
    assert row["note"] == "no calibration error: not finite"


def test_rows_are_compared_with_their_baseline(run: Written) -> None:
    for chain, count in (("baseline", 20), ("same()", 20), ("up()", 30), ("down()", 18)):
        run.row(record(chain), right(count))
    same, up, down = (run.rows()[f"{name}() 0"] for name in ("same", "up", "down"))
    assert (same["accuracy_delta"], same["lost"], same["gained"]) == (0.0, 0, 0)
    assert (same["agreement"], same["accuracy_p"]) == (1.0, 1.0)
    assert same["accuracy_verdict"] == "not shown"
    assert (up["accuracy_delta"], up["lost"], up["gained"]) == (0.25, 0, 10)
    assert up["accuracy_p"] == pytest.approx(2 / 2**10)
    assert up["accuracy_verdict"] == "better"
    assert up["agreement"] == 0.75
    assert (down["accuracy_delta"], down["lost"], down["gained"]) == (-0.05, 2, 0)
    assert down["accuracy_verdict"] == "not shown"
    interval = Difference(0, 10, ITEMS).interval
    assert (up["accuracy_delta_low"], up["accuracy_delta_high"]) == interval


def test_agreement_is_about_answers_and_not_about_being_right(run: Written) -> None:
    wrong = np.zeros(ITEMS, bool)
    run.row(record("baseline"), answers(wrong, np.zeros(ITEMS, int)))
    run.row(record("a()"), answers(wrong, np.r_[np.zeros(10, int), np.ones(30, int)]))
    found = run.rows()["a() 0"]
    assert found["agreement"] == 0.25
    assert (found["lost"], found["gained"]) == (0, 0)


def test_more_rows_make_a_claim_harder(run: Written) -> None:
    """Six flips of one kind: p = 1/32, which alone is a difference, and beside another is not."""
    run.row(record("baseline"), right(20))
    run.row(record("a()"), right(26))
    assert run.rows()["a() 0"]["accuracy_verdict"] == "better"
    run.row(record("b()"), right(26))
    found = run.rows()
    for name in ("a() 0", "b() 0"):
        assert found[name]["accuracy_p"] == 2 / 2**6
        # That they are better is not shown any more; that they lose no point still is.
        assert found[name]["accuracy_verdict"] == "equivalent"


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "verdict"),
    [
        (4, 3, 1.0, "equivalent"),
        (4, 3, 0.1, "not shown"),
        (30, 5, 2.0, "equivalent"),  # surely worse, and surely by less than two points
        (30, 5, 1.0, "worse"),
        (0, 20, 1.0, "better"),
    ],
)
def test_equivalence(tmp_path: Path, lost: int, gained: int, margin: float, verdict: str) -> None:
    run, items = Written(tmp_path, margin=50.0), 2000
    before = right(1900, items)
    after = before.copy()
    after[:lost], after[1900 : 1900 + gained] = False, True
    run.row(record("baseline"), before)
    run.row(record("a()"), after)
    found = run.read(margin)
    row = found.rows[1]
    assert row["accuracy_verdict"] == verdict
    expected = Difference(lost, gained, items)
    assert row["accuracy_bound"] == expected.bound
    assert row["equivalence_p"] == expected.noninferiority_p(margin / 100)
    if verdict in ("equivalent", "not shown"):
        assert (row["accuracy_bound"] > -margin / 100) == (verdict == "equivalent")
    assert found.about["margin"] == margin
    assert run.read().about["margin"] == 50.0, "the run's own stays what it is"


def test_the_widest_margin_holds_whatever_is_lost(run: Written) -> None:
    run.row(record("baseline"), right(40))
    run.row(record("a()"), right(1))
    assert run.rows(margin=100)["a() 0"]["accuracy_verdict"] == "equivalent"


def test_equivalence_is_adjusted_for_the_number_of_rows(run: Written) -> None:
    """By itself p is just below 5 %; beside four more of that kind none is claimed."""
    items, lost = 1000, 2
    margin = -100 * Difference(lost, 0, items).bound * 1.05
    assert 0.02 < Difference(lost, 0, items).noninferiority_p(margin / 100) < 0.05
    run.row(record("baseline"), right(900, items))
    run.row(record("a()"), right(900 - lost, items))
    assert run.rows(margin)["a() 0"]["accuracy_verdict"] == "equivalent"
    for name in "bcde":
        run.row(record(f"{name}()"), right(900 - lost, items))
    verdicts = {row["accuracy_verdict"] for row in run.read(margin).rows[1:]}
    assert verdicts == {"not shown"}


def test_every_seed_has_its_own_baseline(run: Written) -> None:
    for seed, (before, after) in enumerate(((10, 20), (30, 20))):
        run.row(record("baseline", seed), right(before))
        run.row(record("a()", seed), right(after))
    found = run.rows()
    assert found["a() 0"]["accuracy_verdict"] == "better"
    assert found["a() 1"]["accuracy_verdict"] == "worse"


def test_what_the_technique_added_over_its_control(run: Written) -> None:
    run.row(record("baseline"), right(20))
    run.row(record("a()", control="train()"), right(32))
    run.row(record("train()", role="control"), right(30))
    found = run.rows()
    row = found["a() 0"]
    assert row["accuracy_verdict"] == "better"
    assert row["control_delta"] == pytest.approx(2 / ITEMS)
    assert row["control_p"] == 0.5
    assert row["control_verdict"] == "not shown"
    assert row["control_delta_low"] < 0 < row["control_delta_high"]
    assert row["note"] == ""
    assert "control_delta" not in found["train() 0"]
    assert found["train() 0"]["accuracy_verdict"] == "better"


def test_a_control_that_saw_other_samples_is_said_on_the_row(run: Written) -> None:
    run.row(record("baseline"), right(20))
    run.row(record("a()", control="train()"), right(32))
    run.row(Record("train()", 0, "ok", {"train_samples": 12}), right(30))
    note = "not of equal cost: its control saw 12 training samples, and this chain 10"
    assert run.rows()["a() 0"]["note"] == note


def test_a_chain_without_a_control_says_why(run: Written) -> None:
    why = "their_step() trains in its own way"
    run.row(record("a()", missing={"control_verdict": why}), right(20))
    assert run.rows()["a() 0"]["note"] == f"no control of equal cost: {why}"


def test_rows_that_are_not_ok_are_not_compared_and_say_why(run: Written) -> None:
    run.row(record("baseline"), right(20))
    run.row(record("a()", status="unverified"), right(16))
    run.row(record("b()", control="train()"), right(32))
    run.row(record("train()", status="failed"))
    run.row(record("c()", control="stopped()"), right(20))
    a, b, c = (run.rows()[f"{name}() 0"] for name in "abc")
    assert a["missing"] == {"accuracy_verdict": "the row is unverified"}
    assert (a["accuracy"], a["accuracy_delta"]) == (0.4, pytest.approx(-0.1))
    assert b["missing"] == {"control_verdict": "its control is failed"}
    assert b["accuracy_verdict"] == "better"
    assert c["missing"] == {"control_verdict": "its control was not measured"}


def test_a_baseline_that_is_no_good_compares_with_nothing(run: Written) -> None:
    run.row(record("baseline", status="unverified"), right(4))
    run.row(record("a()"), right(2))
    found = run.rows()["a() 0"]
    assert found["missing"] == {"accuracy_verdict": "the baseline is unverified"}
    assert found["accuracy_delta"] == pytest.approx(-0.05)
    assert "accuracy_p" not in found


def test_a_row_that_is_caught_later_leaves_the_comparison(run: Written) -> None:
    run.row(record("baseline"), right(20))
    run.row(record("a()"), right(26))
    run.row(record("b()"), right(40))
    assert run.rows()["a() 0"]["accuracy_verdict"] == "better"  # 1/32, the larger of two
    run.row(record("b()", status="unverified"), right(40))
    found = run.rows()["b() 0"]
    assert "accuracy_verdict" not in found
    assert found["missing"] == {"accuracy_verdict": "the row is unverified"}


def test_other_items_are_not_compared(run: Written) -> None:
    run.row(record("baseline"), right(20))
    run.row(record("a()"), right(20, 41))
    found = run.rows()["a() 0"]
    assert found["missing"] == {"accuracy_verdict": "the baseline answered other items"}
    assert "accuracy_delta" not in found
