"""A subnet with shared weights is the pruned net, and costs what the estimate says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from bench_fixtures import images
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import counts
from compress.compressor import seed_everything
from compress.context import StepContext
from compress.model import Model, forward
from compress.supernet.costs import Shares, macs_by_tensor, params_by_tensor
from compress.supernet.sandwich import Subnet
from compress.supernet.space import within
from compress.techniques.channel_proof import randomized
from compress.techniques.criteria import L2
from compress.techniques.elastic import ElasticNet
from compress.zoo.models import fresh

NETS = [
    "resnet14(width=16)",
    "torchvision:mobilenet_v2(width_mult=0.25, stem='small')",
    "torchvision:VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, "
    "hidden_dim=64, mlp_dim=64)",
]
COUNTED = NETS[:2]


@cache
def elastic(name: str) -> ElasticNet:
    seed_everything(0)
    task = images()
    model = fresh(name, task)
    model = Model(randomized(model.module), model.probe)
    return ElasticNet(model, StepContext(task), L2(), 8, 0.25, True)


@pytest.mark.parametrize("name", NETS)
def test_subnets_equal_pruned_nets_in_float64(name: str) -> None:
    """Sliced weights in a skeleton, against the net that pruning cuts and carving shortens."""
    net = elastic(name)
    whole = net.model.module.double()
    inputs = tuple(one.double() for one in net.model.items(3))
    rng = np.random.default_rng(0)
    try:
        for genes in [net.space.smallest, net.space.largest, *(net.space.drawn(rng),) * 3]:
            with torch.no_grad():
                shared = Subnet(net, genes)(whole, inputs)
                pruned = forward(net.subnet(genes).double(), inputs)
            torch.testing.assert_close(shared, pruned, rtol=1e-9, atol=1e-9)
    finally:
        whole.float()


@pytest.mark.parametrize("name", NETS)
def test_the_largest_is_the_model_and_the_smallest_is_proven(name: str) -> None:
    net = elastic(name)
    inputs = net.model.items(3)
    whole = forward(net.model.module, inputs)
    assert torch.equal(forward(net.subnet(net.space.largest), inputs), whole)
    smallest = net.proven(net.space.smallest).module
    assert forward(smallest, inputs).shape == whole.shape
    before = counts.count(net.model.module, net.model.example)
    assert counts.count(smallest, net.model.example).params < 0.6 * before.params


@pytest.mark.parametrize("name", COUNTED)
@settings(max_examples=10)
@given(seed=st.integers(0, 999), share=st.floats(0.3, 1))
def test_the_budget_holds_for_all_that_is_drawn(name: str, seed: int, share: float) -> None:
    """By the one counter of the house, not by the estimate."""
    net = elastic(name)
    example, rng = net.model.example, np.random.default_rng(seed)
    macs = Shares(net.lengths, *macs_by_tensor(net.model.module, example))
    params = Shares(net.lengths, params_by_tensor(net.model.module, example))
    for cost in (macs, params):
        budget = share * cost(net.space.largest)
        if cost(net.space.smallest) > budget:
            continue
        genes = within(net.space, net.space.drawn(rng), cost, budget, rng)
        counted = counts.count(net.subnet(genes), example)
        # The costs are sums of shares: whole numbers, but for the last bits.
        assert (counted.macs, counted.params) == (round(macs(genes), 6), round(params(genes), 6))
        assert (counted.macs if cost is macs else counted.params) <= budget


def test_gradients_of_a_subnet_reach_its_own_channels_alone() -> None:
    net = elastic("resnet14(width=16)")
    module, genes = net.model.module, net.space.smallest
    module.zero_grad()
    Subnet(net, genes)(module, net.model.items(3)).square().sum().backward()
    picks = net.picks(genes)
    weight = module.get_parameter("layer1.0.conv1.weight")
    [(_, rows), *_] = picks["layer1.0.conv1.weight"]
    gone = torch.ones(len(weight), dtype=torch.bool)
    gone[rows] = False
    assert weight.grad is not None
    assert 0 < len(rows) < len(weight)
    assert weight.grad[rows].abs().sum() > 0
    assert weight.grad[gone].abs().sum() == 0
    for path in net.dropped(genes):
        assert module.get_parameter(f"{path}.conv1.weight").grad is None
    module.zero_grad()


def test_narrower_subnets_are_parts_of_wider_ones() -> None:
    net = elastic("resnet14(width=16)")
    for gene, group in enumerate(net.groups):
        axis = group.axis
        before: set[int] = set()
        for choice in range(net.space.choices[gene]):
            genes = list(net.space.largest)
            genes[gene] = choice
            picked = dict(net.picks(tuple(genes)).get(axis[0], ()))
            kept = set(picked[axis[1]].tolist()) if axis[1] in picked else set(range(group.width))
            assert before < kept
            before = kept
