"""What each criterion is, by arithmetic, and which channels it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from torch import Tensor, nn

from compress.compressor import run
from compress.context import StepContext
from compress.errors import IllegalChain, UserError
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain, criteria
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_scores import scores, widths
from compress.techniques.criteria import (
    L1,
    L2,
    MAKES,
    READS,
    SCALE,
    BnScale,
    Criterion,
    Fisher,
    Fpgm,
    Random,
    Slices,
    Taylor,
)

NAMES = sorted(criteria())


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture
def bench(data: Data) -> StepContext:
    return make_bench(data)


def values(rows: int = 5, columns: int = 7) -> Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(0))


def of(criterion: Criterion, slices: Slices) -> np.ndarray:
    worth = criterion.of(slices, torch.Generator().manual_seed(0))
    assert worth is not None
    return worth.double().numpy()


def test_magnitudes_are_sums_over_a_channel() -> None:
    w = values().double().numpy()
    np.testing.assert_allclose(of(L1(), Slices(MAKES, values())), np.abs(w).sum(1), rtol=1e-5)
    np.testing.assert_allclose(of(L2(), Slices(READS, values())), (w**2).sum(1), rtol=1e-5)


def test_fpgm_is_the_sum_of_distances_to_all_filters() -> None:
    w = values().double().numpy()
    expected = [sum(np.sqrt(((a - b) ** 2).sum()) for b in w) for a in w]
    np.testing.assert_allclose(of(Fpgm(), Slices(MAKES, values())), expected, rtol=1e-6)
    assert Fpgm().of(Slices(READS, values()), torch.Generator()) is None


def test_batch_norm_scales_tell_by_themselves() -> None:
    scale = torch.tensor([[-2.0], [0.5]])
    np.testing.assert_allclose(of(BnScale(), Slices(SCALE, scale)), [2, 0.5])
    assert BnScale().of(Slices(MAKES, values()), torch.Generator()) is None


def test_taylor_is_the_square_of_what_the_loss_loses_to_first_order() -> None:
    w, g = values().double().numpy(), np.flip(values().double().numpy(), 1)
    found = of(Taylor(), Slices(MAKES, values(), values().flip(1)))
    np.testing.assert_allclose(found, ((w * g).sum(1)) ** 2, rtol=1e-5)


def test_taylor_takes_the_gradients_of_the_tasks_loss(data: Data, bench: StepContext) -> None:
    model = fresh_model(data)
    channels = sound_groups(model.module, model.items())
    found, silent = scores(model, channels, Taylor(count=48), bench)
    assert not silent
    # By hand: one pass over the same items, in one batch.
    assert bench.train is not None
    index = torch.arange(48) * len(bench.train) // 48
    raw, targets = bench.train.fetch(index)
    module = model.copy().module
    outputs = module(*bench.task.prepare(raw, torch.device("cpu")))
    bench.task.loss(outputs, targets).backward()
    group = channels.groups[0]
    layer = module.get_submodule(group.path)
    weight = layer.weight
    rows = (weight * weight.grad).flatten(1).sum(1).square().detach().numpy()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        rows = (rows + (norms[0].weight * norms[0].weight.grad).square().detach().numpy()) / 2
    order = np.argsort(np.argsort(group.pools[0]))
    np.testing.assert_allclose(found[group.axis][0], rows[order], rtol=1e-3, atol=1e-12)


def test_fisher_is_the_mean_square_of_what_each_item_loses(data: Data, bench: StepContext) -> None:
    """By a factor of one on every channel of the first layer, item by item."""
    model = fresh_model(data)
    channels = sound_groups(model.module, model.items())
    found, silent = scores(model, channels, Fisher(count=20), bench)
    assert not silent
    assert bench.train is not None
    module = model.copy().module
    group = channels.groups[0]
    layer = module.get_submodule(group.path)
    total = np.zeros(group.width)
    for number in range(20):
        raw, targets = bench.train.fetch(torch.tensor([number * len(bench.train) // 20]))
        gates = torch.ones(group.width, requires_grad=True)
        inputs = bench.task.prepare(raw, torch.device("cpu"))
        hook = layer.register_forward_hook(
            lambda own, _, out, gates=gates: (
                (out - own.bias[:, None, None]) * gates[:, None, None] + own.bias[:, None, None]
            )
        )
        bench.task.loss(module(*inputs), targets).backward()
        hook.remove()
        assert gates.grad is not None
        total += gates.grad.double().numpy() ** 2 / 20
    order = np.argsort(np.argsort(group.pools[0]))
    np.testing.assert_allclose(found[group.axis][0], total[order], rtol=1e-3, atol=1e-12)


def test_fisher_sees_what_the_mean_gradient_hides() -> None:
    """Two items whose effects cancel: to first order nothing is lost, to second order much is."""
    effects = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])
    values, mean = torch.ones(2, 1), effects.mean(0)[:, None]
    slices = Slices(MAKES, values, mean, effects)
    assert of(Taylor(), slices) == pytest.approx([0.0, 0.01])
    assert of(Fisher(), slices) == pytest.approx([1.0, 0.01])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_criterion_prunes_and_the_same_seed_the_same(
    name: str, scope: str, data: Data, bench: StepContext
) -> None:
    text = f"prune_channels(macs=0.6, round_to=1, criterion={name!r}, scope={scope!r})"
    model = fresh_model(data)
    once, twice = (run(chain(text), model, bench).module.state_dict() for _ in range(2))
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert sum(map(torch.numel, once.values())) < sum(
        map(torch.numel, model.module.state_dict().values())
    )


def test_random_takes_others_with_another_seed(data: Data) -> None:
    text = "prune_channels(channels=0.5, criterion='random')"
    model = fresh_model(data)
    once, other = (run(chain(text), model, make_bench(data, seed=n)).module for n in (0, 1))
    firsts = [next(iter(module.parameters())) for module in (once, other)]
    assert not torch.equal(*firsts)


def test_what_a_criterion_says_nothing_about_is_ranked_by_l2_and_said(bench: StepContext) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model = Model(net, (torch.randn(2, 4),))
    by_scale, by_l2 = (
        run(chain(f"prune_channels(channels=0.5, criterion={name!r})"), model, bench).module
        for name in ("bn_scale", "l2")
    )
    assert torch.equal(by_scale[0].weight, by_l2[0].weight)
    assert "bn_scale says nothing about 1 of 1 groups, which are ranked by l2" in str(
        bench.log.notes
    )


def test_a_global_scope_leaves_more_where_channels_are_worth_more(bench: StepContext) -> None:
    net = nn.Sequential(
        *(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
        net[0].weight[:24] *= 0.01  # most of the first layer's channels are worth little
        net[2].weight[:, :24] *= 0.01
    model = Model(net, (torch.randn(2, 4),))
    channels = sound_groups(net, model.items())
    worth, _ = scores(model, channels, L2(), bench)
    whole = {group.axis: group.width for group in channels.groups}
    found = widths(channels.groups, worth, 0.6, "global", whole)
    first, second = (("0.weight", 0), ("2.weight", 0))
    assert found[first] < 0.5 * 32 < found[second]
    local = widths(channels.groups, worth, 0.6, "local", whole)
    assert local == pytest.approx({first: 19.2, second: 19.2})


def test_a_criterion_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'taylor'"):
        chain("prune_channels(macs=0.5, criterion='tailor')")
    with pytest.raises(IllegalChain, match="count must be a whole number"):
        chain("prune_channels(macs=0.5, criterion=taylor(count=0))")


def test_text_with_a_criterion_parses_back() -> None:
    text = "prune_channels(macs=0.5, criterion=taylor(count=64), scope='global')"
    assert repr(chain(text)) == text
    assert chain(repr(chain(text))) == chain(text)


def test_gradients_need_labels_and_the_others_nothing() -> None:
    assert chain("prune_channels(macs=0.5, criterion='fisher')").needs == {"train", "labels"}
    assert chain("prune_channels(macs=0.5, criterion='taylor')").needs == {"train", "labels"}
    assert not chain("prune_channels(macs=0.5, criterion='fpgm')").needs
    assert isinstance(Random(), Criterion)
