"""Subnets are refitted as pruning refits what it leaves, whatever is left out of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import Tensor

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.lowrank import in_turn
from compress.lowrank.layer_inputs import LayerInputs
from compress.lowrank.moments import not_finite
from compress.model import Model, forward
from compress.tasks.base import Data
from compress.techniques import chain, search, subnet_refit
from compress.techniques.channel_refit import refitted
from compress.techniques.criteria import L2
from compress.techniques.elastic import ElasticNet
from compress.techniques.subnet_refit import SubnetRefit
from compress.training.batch_norms import reestimate


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture(scope="module")
def trained(data: Data) -> Model:
    step = chain("train(epochs=4, learning_rate=0.01)")
    return run(step, fresh_model(data, "resnet14(width=8)"), make_context(data))


def items(data: Data, first: int, count: int) -> tuple[Tensor, ...]:
    raw, _ = data.train.fetch(torch.arange(first, first + count))
    return data.task.prepare(raw, torch.device("cpu"))


def elastic(model: Model, context: StepContext) -> ElasticNet:
    return ElasticNet(model, context, L2(), 2, 0.25, True)


def error(net: torch.nn.Module, model: Model, x: tuple[Tensor, ...]) -> float:
    return float((forward(net, x) - forward(model.module, x)).square().mean())


def test_they_come_nearer_than_with_norms_estimated_anew(data: Data, trained: Model) -> None:
    net = elastic(trained, make_context(data))
    fitted_on, others = items(data, 0, 64), items(data, 64, 64)
    refit = SubnetRefit(trained, fitted_on)
    assert refit.possible
    for share, depth in ((0.6, False), (0.5, True)):
        genes = net.scaled(share, True, True, depth)
        assert bool(net.dropped(genes)) == depth
        plain, anew, ours = (net.subnet(genes) for _ in range(3))
        reestimate(anew, [fitted_on])
        refit.refit(ours, net.picks(genes), net.factors(genes))
        errors = [error(one, trained, others) for one in (ours, anew, plain)]
        assert errors[0] < 0.5 * min(errors[1:])


def test_with_the_same_rows_they_are_what_pruning_makes(
    data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnet_refit, "_rows", in_turn.rows_of)
    net = elastic(trained, make_context(data))
    genes = net.scaled(0.5, True, True, False)
    x = items(data, 0, 64)
    ours = net.subnet(genes)
    SubnetRefit(trained, x).refit(ours, net.picks(genes), net.factors(genes))
    given = LayerInputs(trained, [x], 64)
    theirs = refitted(trained, net.proven(genes), net.channels.plan, given, [x]).module
    wanted, found = (forward(one, items(data, 64, 64)) for one in (theirs, ours))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_zeros_and_queries_of_another_scale_stay(data: Data, trained: Model) -> None:
    sparse = replace(trained, sparse=frozenset({"layer2.0.conv2.weight", "layer3.1.conv1.weight"}))
    net = elastic(sparse, make_context(data))
    genes = net.scaled(0.5, True, True, False)
    ours = net.subnet(genes)
    before = {name: one.clone() for name, one in ours.named_parameters()}
    refit = SubnetRefit(sparse, items(data, 0, 64))
    refit.refit(ours, net.picks(genes), net.factors(genes))
    changed = {name for name, one in ours.named_parameters() if not torch.equal(one, before[name])}
    assert changed
    assert not changed & sparse.sparse
    pytest.importorskip("timm")
    vit = fresh_model(
        data, "timm:vit_tiny_patch16_224(depth=2, patch_size=2, embed_dim=32, num_heads=2)"
    )
    net = elastic(vit, make_context(data))
    genes = net.scaled(0.5, True, True, False)
    factors, ours = net.factors(genes), net.subnet(genes)
    assert factors
    before = {name: one.clone() for name, one in ours.named_parameters()}
    SubnetRefit(vit, items(data, 0, 64)).refit(ours, net.picks(genes), factors)
    changed = {name for name, one in ours.named_parameters() if not torch.equal(one, before[name])}
    assert changed
    assert not changed & factors.keys()


def test_without_room_norms_are_estimated_anew(
    data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_turn, "ROOM", 0)
    counts: list[int] = []
    again = search.reestimate

    def counted(module: torch.nn.Module, batches: object) -> None:
        counts.append(1)
        again(module, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "reestimate", counted)
    context = replace(make_context(data), log=StepLog())
    text = "search(macs=0.5, round_to=2, candidates=4, population=2, judged=40)"
    run(chain(text), trained, context)
    assert len(counts) == 4 + 1, "those that are judged, and the one that comes out"
    monkeypatch.undo()
    counts.clear()
    monkeypatch.setattr(search, "reestimate", counted)
    run(chain(text), trained, context)
    assert len(counts) == 1, "that one alone"


def test_an_architecture_without_finite_values_is_the_worst(
    data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    plain = SubnetRefit.refit

    def refit(self: SubnetRefit, *args: object) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise not_finite("layer1.0.conv1")
        plain(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SubnetRefit, "refit", refit)
    context = replace(make_context(data), log=StepLog())
    text = "search(macs=0.5, round_to=2, candidates=4, population=2, judged=40)"
    run(chain(text), trained, context)
    assert count == 4
    [row] = [row for row in context.log.rows if row["kind"] == "search"]
    assert row["accuracy"] > 0
