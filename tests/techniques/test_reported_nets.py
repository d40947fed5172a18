"""Small nets of kinds that people report as broken, with the targets that failed when tried."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pruned_nets import Net, of, pruned, recurrent, share, shuffled
from torch import Tensor, nn

from compress.attention import Attention
from compress.context import StepLog
from compress.model import Model, forward


def reasons(log: StepLog) -> dict[str, str]:
    return {row["layer"]: row["left_alone"] for row in log.rows if "left_alone" in row}


def decayed(module: nn.Module) -> nn.Module:
    """Give weights singular values that fall, as trained ones have."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
                falling = s[0] * torch.exp(-5 * torch.arange(len(s)) / len(s))
                weight.copy_((u * falling @ vh).view_as(weight))
    return module


def group_norms() -> nn.Module:
    def block(c: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(8, c), nn.ReLU()),
            *(nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(8, c)),
        )

    def give(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(m.down(F.relu(x + m.a(x))).mean((2, 3)))

    return Net(
        give,
        stem=nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.ReLU()),
        a=block(64),
        down=nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1), nn.GroupNorm(8, 128), nn.ReLU()),
        out=nn.Linear(128, 10),
    )


@pytest.mark.parametrize("target", [0.7, 0.5])
def test_residual_group_norms_lose_whole_groups(target: float) -> None:
    model = of(group_norms(), 3, 32, 32)
    result, context = pruned(f"prune_channels(macs={target})", model)
    reached = share(result, model)
    assert reached <= target
    # Groups of 8 and 16 channels are coarse: what is off by more than 2 % is said.
    said = any(f"asked for {target:.2f}" in note for note in context.log.notes)
    assert said == (reached < 0.98 * target)
    assert reasons(context.log) == {"out": "it produces the model's output"}
    for before, after in zip(model.module.modules(), result.modules(), strict=True):
        if isinstance(before, nn.GroupNorm):
            assert isinstance(after, nn.GroupNorm)
            whole = before.num_channels // before.num_groups
            assert after.num_channels // after.num_groups == whole


def test_a_small_swin_is_pruned_to_a_target() -> None:
    from torchvision.models import SwinTransformer

    net = SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=10)
    model = of(net, 3, 32, 32)
    result, _ = pruned("prune_channels(macs=0.8, round_to=1)", model)
    assert 0.98 * 0.8 <= share(result, model) <= 0.8


def test_what_a_recurrent_layer_reads_is_cut_to_a_target() -> None:
    """The states of the layer stay, and its MACs count."""

    net = recurrent(28, 64)
    model = of(net, 1, 28, 28)
    result, _ = pruned("prune_channels(macs=0.5, round_to=1)", model)
    assert 0.95 * 0.5 <= share(result, model) <= 0.5
    assert result.gru.input_size == 28 * result.mix.out_channels < 28 * 8
    assert result.gru.hidden_size == 64


def test_an_encoder_layer_is_factorized_with_its_attention() -> None:
    """Its fused kernel reads weights past their forward; beside plain layers it is not used."""
    net = Net(
        lambda m, x: m.out(m.layer(m.patches(x).flatten(2).transpose(1, 2)).mean(1)),
        patches=nn.Conv2d(1, 48, 2, 2),
        layer=nn.TransformerEncoderLayer(48, 4, 192, batch_first=True),
        out=nn.Linear(48, 10),
    )
    model = of(decayed(net), 1, 8, 8)
    result, context = pruned("factorize(macs=0.7, calibration=0)", model)
    assert 0.65 <= share(result, model) <= 0.7
    assert isinstance(result.layer.self_attn, Attention)
    assert "layer.self_attn" not in reasons(context.log)
    inputs = model.items(8)
    before, after = forward(model.module, inputs), forward(result, inputs)
    assert (after - before).square().sum() < 0.5 * (before - before.mean(0)).square().sum()


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight)) * 16


def test_a_forward_of_one_s_own_is_not_lost() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 16, 3, 2, 1),
        b=nn.Conv2d(16, 32, 3, 2, 1),
        out=Cosine(32, 10, bias=False),
    )
    model = of(net, 3, 32, 32)
    result, context = pruned("factorize(rank=0.3, calibration=0)", model)
    assert type(result.out) is Cosine
    assert reasons(context.log)["out"] == "a Cosine, which has a forward of its own"
    assert share(result, model) < 0.8


def test_convolutions_of_timm_that_compute_their_own_weights_stay() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is an extra")
    kinds = {
        "same": layers.Conv2dSame(16, 16, 3),
        "standard": layers.StdConv2d(16, 16, 3),
        "scaled": layers.ScaledStdConv2d(16, 16, 3),
    }

    def give(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        for name in kinds:
            x = F.relu(getattr(m, name)(x))
        return m.out(x.mean((2, 3)))

    net = Net(give, stem=nn.Conv2d(3, 16, 3, 2, 1), **kinds, out=nn.Linear(16, 10))
    model = of(net, 3, 32, 32)
    result, context = pruned("factorize(rank=0.3, calibration=0)", model)
    for name, layer in kinds.items():
        assert type(getattr(result, name)) is type(layer)
        assert "which has a forward of its own" in reasons(context.log)[name]


def zero_beside_a_residual() -> Model:
    net = Net(
        lambda m, x: m.out((lambda y: F.relu(y + m.zero(y)).mean((2, 3)))(F.relu(m.a(x)))),
        a=nn.Conv2d(3, 32, 3, 2, 1),
        zero=nn.Conv2d(32, 32, 3, 1, 1),
        out=nn.Linear(32, 10),
    )
    nn.init.zeros_(net.zero.weight)
    nn.init.zeros_(net.zero.bias)
    return of(net, 3, 32, 32)


def test_an_all_zero_layer_takes_the_whole_cut_at_no_loss() -> None:
    model = zero_beside_a_residual()
    result, context = pruned("factorize(macs=0.5, calibration=0)", model)
    # All its ranks lose nothing: the least is as good as any, and less than was asked for.
    reached = share(result, model)
    assert reached <= 0.5
    assert any(f"and {reached:.2f} was reached" in note for note in context.log.notes)
    [row] = [row for row in context.log.rows if "form" in row]
    assert (row["layer"], row["relative_error"]) == ("zero", 0)
    torch.testing.assert_close(
        forward(result, model.items(4)), forward(model.module, model.items(4))
    )


@pytest.mark.parametrize("step", ["prune_channels(macs=0.7)", "factorize(macs=0.7, calibration=0)"])
def test_tied_layers_stay_tied_and_cost_less(step: str) -> None:
    def give(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))
        return m.out(F.relu(m.third(F.relu(m.second(F.relu(m.first(x)))))))

    net = Net(
        give,
        a=nn.Conv2d(3, 32, 3, 2, 1),
        b=nn.Conv2d(32, 64, 3, 2, 1),
        first=nn.Linear(64, 256),
        second=nn.Linear(256, 64),
        third=nn.Linear(64, 256),
        out=nn.Linear(256, 10),
    )
    net.third.weight = net.first.weight
    model = of(decayed(net), 3, 32, 32)
    result, _ = pruned(step, model)
    assert result.third.weight is result.first.weight
    assert share(result, model) <= 0.7
    sizes = [sum(p.numel() for p in module.parameters()) for module in (result, net)]
    assert sizes[0] < sizes[1]


def test_a_target_below_what_is_possible_leaves_no_layer_collapsed() -> None:
    """Half of a shuffled net's channels are tied: macs=0.05 would take the rest."""

    net = shuffled()
    model = of(decayed(net), 3, 16, 16)
    result, context = pruned("factorize(macs=0.01, calibration=0)", model)
    assert any("it cannot be reached" in note for note in context.log.notes)
    errors = [row["relative_error"] for row in context.log.rows if "form" in row]
    assert all(error**2 <= 0.1 + 1e-9 for error in errors)
    assert share(result, model) > 0.3


def test_weights_of_exactly_low_rank_are_taken_without_loss() -> None:
    """Rank 8 of a convolution, a 1 x 1 convolution and a linear layer: outputs stay equal."""
    net = Net(
        lambda m, x: m.out(F.relu(m.point(F.relu(m.full(F.relu(m.stem(x)))))).mean((2, 3))),
        stem=nn.Conv2d(3, 32, 3, 2, 1),
        full=nn.Conv2d(32, 64, 3, 1, 1),
        point=nn.Conv2d(64, 64, 1),
        out=nn.Linear(64, 40),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in (net.full, net.point, net.out):
            rows = layer.weight.flatten(1)
            low = torch.randn(len(rows), 8) @ torch.randn(8, rows.shape[1]) / 8
            layer.weight.copy_(low.view_as(layer.weight))
    model = of(net, 3, 16, 16)
    result, context = pruned("factorize(energy=0.999999, calibration=0)", model)
    found = {row["layer"]: row for row in context.log.rows if "form" in row}
    assert {"full", "point", "out"} <= found.keys()
    assert all(found[name]["relative_error"] < 1e-5 for name in ("full", "point", "out"))
    assert share(result, model) < 0.5
    expected = forward(model.module, model.items(4))
    torch.testing.assert_close(forward(result, model.items(4)), expected, rtol=1e-3, atol=1e-4)


def test_depthwise_and_grouped_convolutions_stay_and_the_rest_is_thinner() -> None:
    def give(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.point(F.relu(m.depthwise(F.relu(m.stem(x))))))
        return m.out(F.relu(m.line(F.relu(m.grouped(x)).flatten(2))).mean(2))

    net = Net(
        give,
        stem=nn.Conv2d(3, 32, 3, 2, 1),
        depthwise=nn.Conv2d(32, 32, 3, 1, 1, groups=32),
        point=nn.Conv2d(32, 128, 1),
        grouped=nn.Conv2d(128, 64, 3, 2, 1, groups=4),
        line=nn.Conv1d(64, 64, 3, groups=2),
        out=nn.Linear(64, 10),
    )
    model = of(decayed(net), 3, 32, 32)
    result, context = pruned("factorize(energy=0.9, calibration=0)", model)
    left = reasons(context.log)
    grouped = {left[name] for name in ("depthwise", "grouped", "line")}
    assert grouped == {"a grouped convolution"}
    assert isinstance(result.point, nn.Sequential)
    assert [type(getattr(result, name)) for name in ("depthwise", "grouped", "line")] == [
        *(nn.Conv2d, nn.Conv2d, nn.Conv1d)
    ]
