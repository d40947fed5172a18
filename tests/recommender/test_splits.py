"""A search sees no test item, and its steps are those of the final run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import small_digits

from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import Plan, make_plan, with_chains
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import FINAL, SEARCH, USUAL, Suite
from compress.errors import UserError
from compress.tasks.base import Data, Subset

CHAINS = ("distill(epochs=1) -> quantize()", "prune_weights(sparsity=0.5)")


def plan(splits: str, chains: tuple[str, ...] = CHAINS) -> Plan:
    suite = Suite(
        *("s", "digits", "mlp(width=8)", chains),
        baseline="train(epochs=1)",
        controls=False,
        splits=splits,
    )
    return make_plan(suite, step_threads=1)


def items(data: Data, part: str) -> list[bytes]:
    split = getattr(data, part)
    (images,), _ = split.fetch(torch.arange(len(split)))
    return [image.numpy().tobytes() for image in images]


def test_a_search_measures_on_the_validation_split() -> None:
    data = small_digits()
    found = splits_for(SEARCH, data)
    assert found.test is data.validation
    assert splits_for(FINAL, data).test is data.test
    assert splits_for(USUAL, data) is data
    tests = set(items(data, "test"))
    for part in ("train", "validation", "calibration", "test"):
        assert not tests & set(items(found, part))


def test_steps_of_a_search_are_there_for_the_final_run_and_its_measurements_are_not() -> None:
    searched, final = make_graph(plan(SEARCH)), make_graph(plan(FINAL))
    assert searched.setting == final.setting
    for one, other in zip(searched.chain_runs, final.chain_runs, strict=True):
        assert [n.key for n in one.nodes[:-1]] == [n.key for n in other.nodes[:-1]]
        assert one.measured.key != other.measured.key
    # So are those of an ordinary run on the same data.
    usual = make_graph(plan(USUAL))
    assert usual.nodes.keys() == final.nodes.keys()


def test_data_without_training_is_parted() -> None:
    data = small_digits()
    alone = replace(
        data,
        train=data.validation,
        calibration=Subset(data.validation, torch.arange(100)),
        untrainable="it has no training part",
    )
    found = splits_for(SEARCH, alone)
    calibration, validation = (set(items(found, part)) for part in ("calibration", "validation"))
    assert not calibration & validation
    assert len(found.calibration) == len(data.validation) // 2
    assert len(found.calibration) + len(found.validation) == len(data.validation)
    # Again it changes nothing, and the final run has the same parts.
    again = splits_for(SEARCH, found)
    assert again.identity() == found.identity() == splits_for(FINAL, alone).identity()
    assert again.test_identity() == found.test_identity()
    other = replace(alone, calibration_fingerprint="of another source")
    assert splits_for(SEARCH, other).calibration is alone.calibration


def test_a_plan_takes_other_chains_and_refuses_what_cannot_work() -> None:
    first = plan(SEARCH, ())
    assert [row.text for row in first.rows] == ["baseline"]
    second = with_chains(first, CHAINS)
    assert [row.text for row in second.rows] == ["baseline", *CHAINS]
    whole = plan(SEARCH)
    for node in make_graph(second).nodes:
        assert node in make_graph(whole).nodes
    with pytest.raises(UserError, match="unknown teacher 'nobody'"):
        with_chains(first, ["distill(teacher='nobody')"])
    with pytest.raises(UserError, match="unknown technique"):
        with_chains(first, ["melt()"])


def test_only_a_search_may_begin_without_chains() -> None:
    from compress.benchmark.plan.suite import checked

    with pytest.raises(UserError, match="it has no chains"):
        checked(Suite("s", "digits", "mlp", ()))
    assert checked(Suite("s", "digits", "mlp", (), splits=FINAL))
