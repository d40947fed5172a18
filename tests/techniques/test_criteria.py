"""What each criterion is, by arithmetic, and which channels it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from pruned_nets import cut_alone
from torch import Tensor, nn

from compress.compressor import run
from compress.context import StepContext
from compress.errors import IllegalChain, UserError
from compress.int8.calibration import Calibration
from compress.lowrank.layer_inputs import LayerInputs
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain, criteria
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_scores import scores, widths
from compress.techniques.criteria import (
    GATE,
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
    Reconstruction,
    Slices,
    Taylor,
)

NAMES = sorted(criteria())


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture
def bench(data: Data) -> StepContext:
    return make_context(data)


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


class Gated(nn.Module):
    """A stem and a residual block; a gate on every channel, where it is read."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.second = nn.Conv2d(6, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5)
        self.back, self.third = nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 10)
        self.gates: dict[str, Tensor] = {}

    def at(self, path: str, x: Tensor) -> Tensor:
        gate = self.gates.get(path)
        return x if gate is None else x * gate.view(-1, *[1] * (x.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x)).relu()
        inner = self.second(self.inner(self.at("stem", x))).relu()
        x = (x + self.third(self.back(self.at("inner", inner)))).relu()
        return self.out(self.at("stem", x.mean((2, 3))))


def gated(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    net = Gated()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.5)
            nn.init.normal_(layer.running_mean, std=0.2)
    return Model(net.eval(), (torch.randn(2, 1, 8, 8),))


def by_differences(model: Model, bench: StepContext, path: str, width: int, count: int) -> Tensor:
    """Return ∂loss/∂gate of each item and channel, (items, channels), by central differences."""
    assert bench.train is not None
    net = model.copy().module.double()
    raw, targets = bench.train.fetch(torch.arange(count) * len(bench.train) // count)
    [x] = bench.task.prepare(raw, torch.device("cpu"))
    found = torch.zeros(count, width)
    for channel in range(width):
        losses = []
        for gate in (1 + 1e-5, 1 - 1e-5):
            net.gates = {path: torch.ones(width, dtype=torch.float64)}
            net.gates[path][channel] = gate
            with torch.no_grad():
                losses.append(F.cross_entropy(net(x.double()), targets, reduction="none"))
        found[:, channel] = (losses[0] - losses[1]) / 2e-5
    return found


@pytest.mark.parametrize("criterion", [Taylor(count=12), Fisher(count=12)])
def test_criteria_with_gradients_are_those_of_a_factor_on_a_channel(
    criterion: Criterion, data: Data, bench: StepContext
) -> None:
    """By finite differences, behind the norms and activations, at all places that read it."""
    model = gated()
    channels = sound_groups(model.module, model.items())
    found, silent = scores(model, channels, criterion, bench)
    assert not silent
    assert [group.path for group in channels.groups] == ["stem", "inner"]
    for group in channels.groups:
        effects = by_differences(model, bench, group.path, group.width, 12)
        taylor = isinstance(criterion, Taylor)
        expected = effects.mean(0).square() if taylor else effects.square().mean(0)
        classes = channels.plan.of(group.axis)
        place = [int(np.flatnonzero(classes == one)[0]) for one in group.pools[0]]
        np.testing.assert_allclose(
            found[group.axis][0], expected.numpy()[place], rtol=1e-3, atol=1e-9
        )


def test_what_no_weights_read_has_its_gate_on_the_layers_that_make_it(bench: StepContext) -> None:
    """Queries and keys are read by their product alone."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(8, 6), nn.Linear(8, 6)
            self.out = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1, 2)
            return self.out((self.q(x) @ self.k(x).transpose(1, 2)).flatten(1))

    torch.manual_seed(0)
    net = Products().eval()
    model = Model(net, (torch.randn(2, 1, 8, 8),))
    channels = sound_groups(net, model.items())
    [group] = channels.groups
    found, silent = scores(model, channels, Taylor(count=12), bench)
    assert not silent
    assert bench.train is not None
    raw, targets = bench.train.fetch(torch.arange(12) * len(bench.train) // 12)
    gate = torch.ones(6, requires_grad=True)
    net.q.register_forward_hook(lambda layer, given, made: made * gate)
    bench.task.loss(net(*bench.task.prepare(raw, torch.device("cpu"))), targets).backward()
    assert gate.grad is not None
    order = np.argsort(np.argsort(group.pools[0]))
    expected = gate.grad.square().numpy()[order]
    np.testing.assert_allclose(found[group.axis][0], expected, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_a_model_that_is_not_differentiable_is_refused(name: str, bench: StepContext) -> None:
    class Signs(Gated):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    model = Model(Signs().eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(UserError, match=rf"'{name}' needs gradients, and .* not differentiable"):
        run(cut_alone(f"prune_channels(channels=0.5, criterion={name!r})"), model, bench)


def test_a_criterion_with_gradients_need_not_say_over_how_many_items(bench: StepContext) -> None:
    @dataclass(frozen=True, repr=False, kw_only=True)
    class OfEffects(Criterion):
        wants_gradients = True

        def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
            return None if slices.effects is None else slices.effects.mean(0).square()

    model = gated()
    channels = sound_groups(model.module, model.items())
    own, silent = scores(model, channels, OfEffects(), bench)
    builtin, _ = scores(model, channels, Taylor(), bench)
    assert not silent
    assert own.keys() == builtin.keys()
    for group in channels.groups:
        np.testing.assert_allclose(own[group.axis][0], builtin[group.axis][0], rtol=1e-6)


def test_fisher_sees_what_the_mean_gradient_hides() -> None:
    """Two items whose effects cancel: to first order nothing is lost, to second order much is."""
    effects = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])
    slices = Slices(GATE, torch.ones(2, 0), None, effects)
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
    once, other = (run(chain(text), model, make_context(data, seed=n)).module for n in (0, 1))
    firsts = [next(iter(module.parameters())) for module in (once, other)]
    assert not torch.equal(*firsts)


def test_what_a_criterion_says_nothing_about_is_ranked_by_l2_and_said(bench: StepContext) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model = Model(net, (torch.randn(2, 4),))
    by_scale, by_l2 = (
        run(cut_alone(f"prune_channels(channels=0.5, criterion={name!r})"), model, bench).module
        for name in ("bn_scale", "l2")
    )
    assert torch.equal(by_scale[0].weight, by_l2[0].weight)
    assert "bn_scale says nothing about 1 of 1 groups, which are ranked by l2" in str(
        bench.log.notes
    )


@pytest.mark.parametrize(
    ("worth", "said"),
    [(torch.full((16,), torch.nan), "not finite"), (torch.ones(3), r"of shape \(3,\)")],
)
def test_scores_that_cannot_be_ranked_are_refused(
    worth: Tensor, said: str, bench: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    monkeypatch.setattr(L1, "of", lambda *_: worth)
    with pytest.raises(UserError, match=f"'l1' gives scores .*{said}.* for 0.weight .16 channels"):
        run(
            cut_alone("prune_channels(channels=0.5, criterion='l1')"),
            Model(net, (torch.randn(2, 4),)),
            bench,
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
    assert cut_alone("prune_channels(macs=0.5, criterion='fisher')").needs == {"train", "labels"}
    assert cut_alone("prune_channels(macs=0.5, criterion='taylor')").needs == {"train", "labels"}
    assert not cut_alone("prune_channels(macs=0.5, criterion='fpgm')").needs
    assert isinstance(Random(), Criterion)


def test_reconstruction_is_what_readers_lose_on_calibration_items(data: Data) -> None:
    """Of two groups: one has one reader, the other (a stream) two; all positions are rows."""
    model, given = gated(), make_context(data)
    items = given.calibration_items(40)
    inputs = LayerInputs(model, Calibration(data.task, items), 40)
    channels = sound_groups(model.module, model.items())
    found, silent = scores(model, channels, Reconstruction(), given, inputs)
    assert not silent
    x, _ = next(Calibration(data.task, items, 40).pairs())
    seen: dict[str, Tensor] = {}
    for path in ("inner", "back", "out"):
        layer = model.module.get_submodule(path)
        layer.register_forward_pre_hook(lambda m, given, path=path: seen.update({path: given[0]}))
    with torch.no_grad():
        model.module(*x)
    readers = {"stem": ("inner", "out"), "inner": ("back",)}
    for group in channels.groups:
        worth = found[group.axis][0]
        layers = {path: model.module.get_submodule(path) for path in readers[group.path]}
        costs = [
            sum(_lost(layer, seen[path], one) for path, layer in layers.items())
            for one in range(len(worth))
        ]
        assert int(worth.argmin()) == int(np.argmin(costs))
        assert float(worth.min()) == pytest.approx(min(costs), rel=1e-3)


def _lost(layer: nn.Module, x: Tensor, gone: int) -> float:
    """Return the share of a layer's outputs' variance lost without a channel, by numpy's solve."""
    kernel = getattr(layer, "kernel_size", (1, 1))
    x = x if x.ndim == 4 else x[:, :, None, None]
    rows = F.unfold(x, kernel, padding=getattr(layer, "padding", 0)).transpose(1, 2)
    flat = rows.reshape(-1, rows.shape[2]).double().numpy()
    square = float((flat**2).mean())
    flat = flat - flat.mean(0) if layer.bias is not None else flat
    moments = flat.T @ flat / len(flat)
    share = max(0.01, len(moments) / len(flat))
    ridge = share * np.trace(moments) / len(moments) + 1e-6 * square
    moments += ridge * np.eye(len(moments))
    weight = layer.weight.detach().double().flatten(1).numpy()
    size = kernel[0] * kernel[1]
    left = np.delete(np.arange(len(moments)), np.arange(gone * size, (gone + 1) * size))
    wanted = weight @ moments[:, left]
    kept = np.trace(np.linalg.solve(moments[np.ix_(left, left)], wanted.T) @ wanted)
    return float(1 - kept / np.trace(weight @ moments @ weight.T))


def test_reconstruction_needs_calibration_items() -> None:
    with pytest.raises(IllegalChain, match="'reconstruction' looks at calibration items"):
        chain("prune_channels(macs=0.5, criterion='reconstruction', calibration=0)")
