"""Comparisons of rows by their answers: with the baseline, with the control, of several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from compress.results.compare import Answers, compare_records
from compress.results.record import Record
from compress.stats.pairs import paired_interval

N = 40


def right(count: int) -> Answers:
    """Right in the first items; the answer is the item's number, or one that is never right."""
    correct = np.arange(N) < count
    return Answers(np.where(correct, np.arange(N), -1), correct)


def record(chain: str, seed: int = 0, status: str = "ok", **more: str) -> Record:
    return Record(chain, seed, status, {"accuracy": 0.5, "train_samples": 10}, **more)  # type: ignore[arg-type]


def compared(
    *rows: tuple[Record, Answers],
) -> dict[str, Record]:
    records = {(one.chain, one.seed): one for one, _ in rows}
    found = compare_records(
        records, {(one.chain, one.seed): answers for one, answers in rows if one.status == "ok"}
    )
    return {f"{chain} {seed}": one for (chain, seed), one in found.items()}


def test_rows_are_compared_with_their_baseline() -> None:
    found = compared(
        (record("baseline"), right(20)),
        (record("same()"), right(20)),
        (record("up()"), right(30)),
        (record("down()"), right(18)),
    )
    assert found["baseline 0"] == record("baseline")
    same, up, down = (found[f"{name}() 0"].measured for name in ("same", "up", "down"))
    assert (same["accuracy_delta"], same["lost"], same["gained"]) == (0.0, 0, 0)
    assert (same["agreement"], same["accuracy_p"]) == (1.0, 1.0)
    assert same["accuracy_verdict"] == "indistinguishable"
    assert (up["accuracy_delta"], up["lost"], up["gained"]) == (0.25, 0, 10)
    assert up["accuracy_p"] == pytest.approx(2 / 2**10)
    assert up["accuracy_verdict"] == "better"
    assert up["agreement"] == 0.75
    assert (down["accuracy_delta"], down["lost"], down["gained"]) == (-0.05, 2, 0)
    assert down["accuracy_verdict"] == "indistinguishable"
    interval = (up["accuracy_delta_low"], up["accuracy_delta_high"])
    assert interval == paired_interval(lost=0, gained=10, items=N)


def test_agreement_is_about_answers_and_not_about_being_right() -> None:
    wrong = np.zeros(N, bool)
    baseline = Answers(np.zeros(N, int), wrong)
    other = Answers(np.r_[np.zeros(10, int), np.ones(N - 10, int)], wrong)
    found = compared((record("baseline"), baseline), (record("a()"), other))["a() 0"].measured
    assert found["agreement"] == 0.25
    assert (found["lost"], found["gained"]) == (0, 0)


def test_more_rows_make_a_claim_harder() -> None:
    """Six flips of one kind: p = 1/32, which alone is a difference, and beside another is not."""
    alone = compared((record("baseline"), right(20)), (record("a()"), right(26)))
    assert alone["a() 0"].measured["accuracy_verdict"] == "better"
    both = compared(
        (record("baseline"), right(20)),
        (record("a()"), right(26)),
        (record("b()"), right(26)),
    )
    for name in ("a() 0", "b() 0"):
        assert both[name].measured["accuracy_p"] == 2 / 2**6
        assert both[name].measured["accuracy_verdict"] == "indistinguishable"


def test_every_seed_has_its_own_baseline() -> None:
    found = compared(
        (record("baseline", 0), right(10)),
        (record("a()", 0), right(20)),
        (record("baseline", 1), right(30)),
        (record("a()", 1), right(20)),
    )
    assert found["a() 0"].measured["accuracy_verdict"] == "better"
    assert found["a() 1"].measured["accuracy_verdict"] == "worse"


def test_what_the_technique_added_over_its_control() -> None:
    found = compared(
        (record("baseline"), right(20)),
        (record("a()", control="train()"), right(32)),
        (record("train()", role="control"), right(30)),
    )
    row = found["a() 0"].measured
    assert row["accuracy_verdict"] == "better"
    assert row["control_delta"] == pytest.approx(2 / N)
    assert row["control_p"] == 0.5
    assert row["control_verdict"] == "indistinguishable"
    assert row["control_delta_low"] < 0 < row["control_delta_high"]
    assert found["a() 0"].notes == ()
    assert "control_delta" not in found["train() 0"].measured
    assert found["train() 0"].measured["accuracy_verdict"] == "better"


def test_a_control_that_saw_other_samples_is_said_on_the_row() -> None:
    more = Record("train()", 0, "ok", {"train_samples": 12})
    rows = (
        (record("baseline"), right(20)),
        (record("a()", control="train()"), right(32)),
        (more, right(30)),
    )
    found = compared(*rows)
    note = "not of equal cost: its control saw 12 training samples, and this chain 10"
    assert found["a() 0"].notes == (note,)
    again = compared(*((found[f"{one.chain} 0"], answers) for one, answers in rows))
    assert again == found


def test_rows_that_are_not_ok_are_not_compared_and_say_why() -> None:
    found = compared(
        (record("baseline"), right(20)),
        (Record("a()", 0, "unverified", {"accuracy": 0.4, "accuracy_delta": -0.1}), right(0)),
        (record("b()", control="train()"), right(32)),
        (record("train()", status="failed"), right(0)),
        (record("c()", control="stopped()"), right(20)),
    )
    a, b, c = (found[f"{name}() 0"] for name in "abc")
    assert a.missing == {"accuracy_verdict": "the row is unverified"}
    assert a.measured == {"accuracy": 0.4, "accuracy_delta": -0.1}
    assert b.missing == {"control_verdict": "its control is failed"}
    assert b.measured["accuracy_verdict"] == "better"
    assert c.missing == {"control_verdict": "its control was not measured"}


def test_a_baseline_that_is_no_good_compares_with_nothing() -> None:
    found = compared((record("baseline", status="unverified"), right(0)), (record("a()"), right(2)))
    assert found["a() 0"].missing == {"accuracy_verdict": "the baseline is unverified"}
    assert found["a() 0"].measured == record("a()").measured


def test_a_row_that_is_caught_later_leaves_the_comparison() -> None:
    rows = [
        (record("baseline"), right(20)),
        (record("a()"), right(26)),
        (record("b()"), right(40)),
    ]
    first = compared(*rows)
    assert first["b() 0"].measured["accuracy_verdict"] == "better"
    assert first["a() 0"].measured["accuracy_verdict"] == "better"  # 1/32, the larger of two
    caught = Record("b()", 0, "unverified", first["b() 0"].measured)
    second = compared(
        (first["baseline 0"], right(20)), (first["a() 0"], right(26)), (caught, right(40))
    )
    assert set(second["b() 0"].measured) == {"accuracy", "train_samples", "accuracy_delta"}
    assert second["b() 0"].missing == {"accuracy_verdict": "the row is unverified"}
