"""A pruned net equals the original with those channels zeroed; targets, rounding, protection."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import StepFailed, UserError
from compress.model import Model, forward, items_like
from compress.surgery import output_layers
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.techniques.channel_cut import cut, zeroed
from compress.techniques.channel_groups import sound_groups
from compress.zoo.models import fresh

TASK = ImageClassification(
    "test", tuple("0123456789"), Preprocessing(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
)


def prepared(name: str) -> Model:
    """Return a model whose every tensor is random, batch-norm statistics included."""
    torch.manual_seed(0)
    model = fresh(name, TASK)
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def step_context() -> StepContext:
    return StepContext(TASK, log=StepLog())


NETS = [
    "cnn-small(width=16)",
    "mlp",
    "resnet20",
    "torchvision:resnet18(stem='small')",
    "torchvision:mobilenet_v2(stem='small', width_mult=0.5)",
    "torchvision:VisionTransformer(patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, "
    "mlp_dim=64)",
]


class Net(nn.Module):
    """Layers, and a forward written in full."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.give = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.give(self, x)


def of(module: nn.Module, *shape: int) -> Model:
    """Return a model of a module whose norms do something, and noise."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return Model(module.eval(), (torch.randn(2, *shape),))


def pruned(text: str, model: Model) -> tuple[nn.Module, StepContext]:
    """Return what a step makes of a model, which gives finite outputs of the same shape."""
    context = step_context()
    result = run(chain(text), model, context)
    assert (
        forward(result.module, model.items(3)).shape == forward(model.module, model.items(3)).shape
    )
    return result.module, context


def share(after: nn.Module, model: Model) -> float:
    return counts.macs(after, model.example) / counts.macs(model.module, model.example)


def kept_rows(before: Tensor, after: Tensor) -> list[int]:
    """Return which rows of a vector or matrix are left, by their values."""
    rows = [tuple(row) for row in before.reshape(len(before), -1)[:, :1].tolist()]
    return [rows.index(tuple(row)) for row in after.reshape(len(after), -1)[:, :1].tolist()]


@pytest.mark.parametrize("name", NETS)
def test_cut_net_equals_the_original_with_zeroed_channels(name: str) -> None:
    model = prepared(name)
    channels = sound_groups(model.module, model.items())
    assert channels.groups
    gone = np.concatenate(
        [
            g.least([np.arange(len(pool)) for pool in g.pools], g.grains // 2)
            for g in channels.groups
        ]
    )
    done = cut(model.module, channels.plan, gone)
    assert done.removed
    inputs = model.items(4)
    if not channels.plan.trace.norms:
        expected = forward(zeroed(model.module, channels.plan, gone), inputs)
        torch.testing.assert_close(forward(done.module, inputs), expected, rtol=1e-4, atol=1e-4)
    sizes = [counts.count(module, model.example).params for module in (done.module, model.module)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["cnn-small", *NETS[1:5]])
@pytest.mark.parametrize("target", [0.7, 0.4])
def test_macs_target_is_met_from_below(name: str, target: float) -> None:
    model, context = prepared(name), step_context()
    result = run(chain(f"prune_channels(macs={target}, round_to=1)"), model, context)
    reached = share(result.module, model)
    assert 0.98 * target <= reached <= target
    assert not any("asked for" in note for note in context.log.notes)


@pytest.mark.parametrize("target", [0.7, 0.5])
def test_a_target_of_parameters_is_met(target: float) -> None:
    model = prepared("resnet20")
    result = run(chain(f"prune_channels(params={target}, round_to=1)"), model, step_context())
    sizes = [counts.count(m, model.example).params for m in (result.module, model.module)]
    assert 0.98 * target <= sizes[0] / sizes[1] <= target


def test_a_target_that_cannot_be_reached_is_refused_with_the_least() -> None:
    model = prepared("resnet20")
    with pytest.raises(StepFailed, match=r"macs=0.01 cannot be reached: .* at least 0\.\d\d of"):
        run(chain("prune_channels(macs=0.01)"), model, step_context())


def test_the_least_that_is_named_can_be_reached() -> None:
    model = prepared("resnet20")
    with pytest.raises(StepFailed, match="at least") as raised:
        run(chain("prune_channels(macs=0.01)"), model, step_context())
    least = str(raised.value).rpartition("Ask for macs=")[2].split()[0]
    result = run(chain(f"prune_channels(macs={least})"), model, step_context())
    assert share(result.module, model) <= float(least)


def test_widths_are_multiples_of_round_to() -> None:
    model = prepared("torchvision:resnet18(stem='small')")
    result = run(chain("prune_channels(macs=0.4, round_to=16)"), model, step_context())
    widths = {m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)}
    assert all(width % 16 == 0 for width in widths)


def test_channels_keeps_that_fraction_of_every_group() -> None:
    model = prepared("cnn-small")
    result = run(chain("prune_channels(channels=0.25)"), model, step_context())
    widths = [m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 32]


def test_the_least_channels_go() -> None:
    model = prepared("cnn-small")
    first = next(m for m in model.module.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[::2] *= 1e-3
    result, _ = pruned("prune_channels(channels=0.5)", model)
    ours = next(m for m in result.modules() if isinstance(m, nn.Conv2d))
    # The consumers' weights count in the group's norm too, but not a thousandfold.
    kept = kept_rows(first.weight, ours.weight)
    assert sum(index % 2 == 1 for index in kept) >= len(kept) - 2


def test_an_option_a_residual_stream_is_cut_and_the_padding_follows() -> None:
    model = prepared("resnet20")
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert result.conv1.out_channels == 8
    pads = [m for m in result.modules() if hasattr(m, "before")]
    widths = [m.before + m.after for m in pads]
    assert widths == [8, 16]
    assert {r["layer"] for r in context.log.rows if "left_alone" in r} == {"linear"}


def test_whatever_produces_the_output_is_protected() -> None:
    """SqueezeNet's classifier is a convolution with ReLU and pooling after it."""
    module = torchvision.models.squeezenet1_1(num_classes=10).eval()
    example = (torch.zeros(1, 3, 64, 64),)
    assert output_layers(module, example) == ["classifier.1"]
    context = step_context()
    result = run(chain("prune_channels(channels=0.5)"), Model(module, example), context)
    assert forward(result.module, items_like(example)).shape == (2, 10)
    [row] = [row for row in context.log.rows if "left_alone" in row]
    assert row["layer"] == "classifier.1"
    assert "output" in row["left_alone"]


def test_two_heads_that_are_added_are_both_protected() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.stem(x).relu()
            return self.a(hidden) + self.b(hidden).sigmoid()

    assert sorted(output_layers(Two(), (torch.zeros(1, 6),))) == ["a", "b"]
    model = of(Two(), 6)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert (result.stem.out_features, result.a.out_features, result.b.out_features) == (8, 3, 3)


# --- kinds of nets ------------------------------------------------------------------------------


def test_channels_that_are_shuffled_are_cut() -> None:
    """ShuffleNet splits, concatenates and shuffles; inside its blocks there is much to cut."""
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    model = of(module, 3, 64, 64)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert share(result, model) < 0.75


def test_a_shuffle_by_view_and_transpose_keeps_its_order() -> None:
    def shuffled(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.grouped(F.relu(m.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.out(F.relu(m.again(x)).mean((2, 3)))

    net = Net(
        shuffled,
        stem=nn.Conv2d(3, 32, 3, 2, 1),
        grouped=nn.Conv2d(32, 64, 3, 1, 1, groups=2),
        again=nn.Conv2d(64, 64, 3, 2, 1, groups=2),
        out=nn.Linear(64, 10),
    )
    model = of(net, 3, 16, 16)
    result, _ = pruned("prune_channels(macs=0.76, round_to=2)", model)
    assert 0.98 * 0.76 <= share(result, model) <= 0.76
    assert result.grouped.groups == result.again.groups == 2
    assert min(m.out_channels for m in (result.stem, result.grouped, result.again)) > 16


def test_swin_is_pruned_whole_its_attention_keeps_its_scale() -> None:
    """Patch merging concatenates along axis -1; heads are as wide as the model's channels tell."""
    from torchvision.models import SwinTransformer

    net = SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=10)
    model = of(net, 3, 32, 32)
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", model)
    assert result.features[0][0].out_channels == 12
    assert result.features[1][0].attn.qkv.weight.shape == (36, 12)
    assert share(result, model) < 0.4
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"head"}


def test_attention_without_some_of_its_width_is_attention_with_these_zero() -> None:
    """By hand: queries and keys of the channels that are kept, at the scale of all of them."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, dropout=0.0)

    def encode(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(m.layer(m.patch(x)).mean(1))

    whole = Net(encode, patch=nn.Linear(5, 16), layer=net, out=nn.Linear(16, 3))
    model = of(whole, 7, 5)
    result, _ = pruned("prune_channels(channels=0.5, round_to=1)", model)
    attention, before = result.layer.self_attn, whole.layer.self_attn
    assert (attention.embed_dim, attention.head_dim) == (8, 4)
    kept = kept_rows(whole.patch.weight.detach(), result.patch.weight.detach())
    # Keys and values lie in the second and the third part of the packed weight.
    rows = [
        [row[:1] for row in before.in_proj_weight[16:].detach()[:, kept].tolist()].index(row[:1])
        for row in attention.in_proj_weight[8:].tolist()
    ]
    keys, x = rows[:8], torch.randn(1, 7, 16)
    assert sorted(keys) == keys
    mask = torch.zeros(16)
    mask[kept] = 1
    weight, bias = before.in_proj_weight.detach(), before.in_proj_bias.detach()
    q, k, v = ((x * mask) @ weight.T + bias).chunk(3, dim=-1)
    held = torch.zeros(16)
    held[keys] = 1
    heads = [(t * held).view(1, 7, 2, 8).transpose(1, 2) for t in (q, k, v)]
    mixed = torch.softmax(heads[0] @ heads[1].mT / 8**0.5, -1) @ heads[2]
    expected = before.out_proj(mixed.transpose(1, 2).flatten(2))[..., kept]
    ours, _ = attention(x[..., kept], x[..., kept], x[..., kept], need_weights=False)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_before_a_recurrent_layer_is_cut() -> None:
    def read(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.mix(F.relu(m.stem(x))))
        states, _ = m.gru(x.permute(0, 2, 1, 3).flatten(2))
        return m.out(states[:, -1])

    net = Net(
        read,
        stem=nn.Conv2d(1, 16, 3, 1, 1),
        mix=nn.Conv2d(16, 8, 1),
        gru=nn.GRU(8 * 8, 12, batch_first=True),
        out=nn.Linear(12, 10),
    )
    model = of(net, 1, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=4)", model)
    assert (result.stem.out_channels, result.mix.out_channels) == (8, 4)
    assert (result.gru.input_size, result.gru.hidden_size) == (32, 12)
    [row] = [row for row in context.log.rows if row.get("layer") == "gru"]
    assert "fixed size" in row["left_alone"]


def resnext(groups: int) -> Net:
    def block(c: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)),
        )

    def add(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = F.relu(x + m.a(x))
        return m.out(F.relu(x + m.b(x)).mean((2, 3)))

    return Net(add, stem=nn.Conv2d(3, 64, 3, 2, 1), a=block(64), b=block(64), out=nn.Linear(64, 10))


@pytest.mark.parametrize("groups", [2, 8, 16, 32, 64])
@pytest.mark.parametrize("target", [0.8, 0.65])
def test_grouped_convolutions_reach_the_target(groups: int, target: float) -> None:
    model = of(resnext(groups), 3, 16, 16)
    result, _ = pruned(f"prune_channels(macs={target}, round_to=1)", model)
    assert 0.98 * target <= share(result, model) <= target
    for layer in result.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            assert layer.in_channels % layer.groups == layer.out_channels % layer.groups == 0


def test_a_missed_target_is_said_whichever_way_it_is_missed() -> None:
    model = of(resnext(8), 3, 16, 16)
    result, context = pruned("prune_channels(macs=0.65, round_to=32)", model)
    reached = share(result, model)
    assert reached < 0.98 * 0.65
    assert f"asked for 0.65 of the MACs, reached {reached:.2f}" in context.log.notes[-1]


def test_a_mask_of_one_channel_stays_and_the_rest_shrinks() -> None:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.features(x))
        x = x * torch.sigmoid(m.mask(x))
        return m.out(F.relu(m.last(x)).mean((2, 3)))

    net = Net(
        attend,
        features=nn.Conv2d(3, 32, 3, 1, 1),
        mask=nn.Conv2d(32, 1, 7, 1, 3),
        last=nn.Conv2d(32, 64, 3, 2, 1),
        out=nn.Linear(64, 10),
    )
    model = of(net, 3, 16, 16)
    result, _ = pruned("prune_channels(macs=0.5)", model)
    assert result.mask.out_channels == 1
    assert 16 <= result.features.out_channels < 32
    assert 32 <= result.last.out_channels < 64


def test_nothing_removed_is_said_with_the_reason() -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = of(net, 1, 8, 8)
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert share(result, model) == 1
    assert context.log.notes == [
        "prune_channels: asked for 0.50 of the channels, reached 1.00: widths are multiples of "
        "round_to=8 and of coupled channels, and 2 of 2 groups are no wider than one step"
    ]


@pytest.mark.parametrize("groups", [1, 8])
def test_group_norms_lose_whole_groups_or_are_taken_over_what_is_kept(groups: int) -> None:
    """The reference by hand: kept channels, normalised with the statistics of kept channels."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 1, 1), nn.GroupNorm(groups, 32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    model = of(net, 3, 8, 8)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert result[0].out_channels == result[1].num_channels == 16
    assert result[1].num_groups == max(1, groups // 2)
    kept = kept_rows(net[0].weight.detach(), result[0].weight.detach())
    assert kept == sorted(kept)
    x = net[0](model.probe[0]).detach().numpy()[:, kept].astype(np.float64)
    parts = x.reshape(2, result[1].num_groups, -1)
    spread = parts.var(-1, keepdims=True) + net[1].eps
    parts = ((parts - parts.mean(-1, keepdims=True)) / spread**0.5).reshape(x.shape)
    weight, bias = (t.detach().numpy()[kept] for t in (net[1].weight, net[1].bias))
    pooled = np.maximum(parts * weight[:, None, None] + bias[:, None, None], 0).mean((2, 3))
    expected = pooled @ net[5].weight.detach().numpy()[:, kept].T + net[5].bias.detach().numpy()
    np.testing.assert_allclose(forward(result, model.probe).numpy(), expected, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(width=st.integers(5, 40), keeps=st.floats(0.2, 0.9), seed=st.integers(0, 99))
def test_a_layer_norm_keeps_its_order_at_every_width(width: int, keeps: float, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2)).eval()
    nn.init.normal_(net[1].weight)
    model = Model(net, (torch.randn(4, 3),))
    result, _ = pruned(f"prune_channels(channels={keeps!r}, round_to=1)", model)
    kept = kept_rows(net[0].weight.detach(), result[0].weight.detach())
    assert kept == sorted(kept)
    assert len(kept) == max(1, round(keeps * width))
    assert torch.equal(result[1].weight, net[1].weight[kept])
    hidden = net[0](model.probe[0])[:, kept]
    normed = F.layer_norm(hidden, (len(kept),), net[1].weight[kept], net[1].bias[kept])
    expected = normed @ net[2].weight[:, kept].T + net[2].bias
    torch.testing.assert_close(forward(result, model.probe), expected.detach())


def test_frozen_batch_norms_are_cut() -> None:
    norm = torchvision.ops.FrozenBatchNorm2d(32)
    norm.bias += torch.randn(32)
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 10),
    )
    result, _ = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    assert result[0].out_channels == len(result[1].bias) == len(result[1].running_var) == 16


def test_the_reason_told_is_the_true_one() -> None:
    def odd(m: nn.Module, x: Tensor) -> Tensor:
        x = m.first(x).cumsum(1)
        return m.out(F.relu(m.second(F.relu(x))).mean((2, 3)))

    net = Net(odd, first=nn.Conv2d(3, 16, 3), second=nn.Conv2d(16, 32, 3), out=nn.Linear(32, 10))
    model = of(net, 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert (result.first.out_channels, result.second.out_channels) == (16, 16)
    reasons = {r["layer"]: r["left_alone"] for r in context.log.rows if "left_alone" in r}
    assert reasons["first"] == "the model's own forward takes cumsum over its channels"
    assert any("'first': the model's own forward takes cumsum" in n for n in context.log.notes)


def test_code_of_fixed_sizes_is_found_by_trying() -> None:
    """The graph cannot see that 16 is written in the code: the cut copy does not run."""

    def fixed(m: nn.Module, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x.reshape(len(x), 16, -1)[..., None]
        return m.out(F.relu(m.second(x)).mean((2, 3)))

    net = Net(fixed, first=nn.Conv2d(3, 16, 3), second=nn.Conv2d(16, 32, 1), out=nn.Linear(32, 10))
    result, context = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    assert (result.first.out_channels, result.second.out_channels) == (16, 16)
    assert any("'first': cut, it" in note for note in context.log.notes)


def test_tied_weights_stay_tied() -> None:
    def chained(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x)).mean((2, 3))
        return m.out(F.relu(m.third(F.relu(m.second(F.relu(m.first(x)))))))

    net = Net(
        chained,
        a=nn.Conv2d(3, 64, 3, 2, 1),
        first=nn.Linear(64, 96),
        second=nn.Linear(96, 64),
        third=nn.Linear(64, 96),
        out=nn.Linear(96, 10),
    )
    net.third.weight = net.first.weight
    model = of(net, 3, 8, 8)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert result.third.weight is result.first.weight
    assert result.first.weight.shape == (48, 32)


def test_a_module_called_twice_is_cut_once() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.twice(F.relu(m.twice(F.relu(m.stem(x)))))).mean((2, 3))),
        stem=nn.Conv2d(3, 32, 3, 1, 1),
        twice=nn.Conv2d(32, 32, 3, 1, 1),
        out=nn.Linear(32, 10),
    )
    result, _ = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    assert (result.twice.in_channels, result.twice.out_channels) == (16, 16)


def test_a_transposed_convolution_with_groups_is_cut() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.last(F.relu(m.up(F.relu(m.down(x)))))).mean((2, 3))),
        down=nn.Conv2d(3, 32, 3, 2, 1),
        up=nn.ConvTranspose2d(32, 24, 4, 2, 1, output_padding=1, groups=2),
        last=nn.Conv2d(24, 32, 3, 2, 1),
        out=nn.Linear(32, 10),
    )
    result, _ = pruned("prune_channels(channels=0.5, round_to=2)", of(net, 3, 16, 16))
    assert (result.up.in_channels, result.up.out_channels, result.up.groups) == (16, 12, 2)


def test_a_u_net_with_two_ways_up_is_cut() -> None:
    def forth_and_back(m: nn.Module, x: Tensor) -> Tensor:
        a = F.relu(m.a(x))
        b = F.relu(m.b(F.max_pool2d(a, 2)))
        up = F.interpolate(b, scale_factor=2, mode="bilinear")
        shuffled = F.pixel_shuffle(m.wide(b), 2)
        x = F.relu(m.join(torch.cat([a, up, shuffled], dim=-3)))
        return m.out(x.mean((2, 3)))

    net = Net(
        forth_and_back,
        a=nn.Conv2d(3, 16, 3, 1, 1),
        b=nn.Conv2d(16, 32, 3, 1, 1),
        wide=nn.Conv2d(32, 32, 1),
        join=nn.Conv2d(56, 16, 3, 1, 1),
        out=nn.Linear(16, 10),
    )
    model = of(net, 3, 16, 16)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert [m.out_channels for m in (result.a, result.b, result.wide)] == [8, 16, 16]
    assert result.join.in_channels == 8 + 16 + 4


def test_what_was_frozen_stays_frozen_and_the_input_is_untouched() -> None:
    model = prepared("cnn-small(width=16)")
    name = next(n for n, _ in model.module.named_parameters())
    model.module.get_parameter(name).requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert [n for n, p in result.named_parameters() if not p.requires_grad] == [name]
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


def test_an_ignored_layer_keeps_its_width_and_an_unknown_one_is_refused() -> None:
    model = prepared("cnn-small(width=16)")
    paths = [n for n, m in model.module.named_modules() if isinstance(m, nn.Conv2d)]
    result, _ = pruned(f"prune_channels(channels=0.5, ignored=[{paths[0]!r}])", model)
    widths = [m.out_channels for m in result.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 16]
    with pytest.raises(UserError, match=r"no layer 'nothing' to ignore"):
        run(chain("prune_channels(channels=0.5, ignored=['nothing'])"), model, step_context())


def test_fractions_in_repeat_refer_to_the_model_that_enters_it() -> None:
    model = prepared("cnn-small(width=16)")
    once = run(chain("prune_channels(channels=0.5)"), model, step_context())
    thrice = run(chain("repeat(3, prune_channels(channels=0.5))"), model, step_context())
    assert counts.macs(thrice.module, model.example) == counts.macs(once.module, model.example)


def test_a_target_that_is_met_already_leaves_the_model_without_a_note() -> None:
    model = prepared("cnn-small(width=16)")
    small = run(chain("prune_channels(channels=0.5)"), model, step_context())
    context = replace(step_context(), origin=model)
    result = run(chain("prune_channels(macs=0.6)"), small, context)
    assert counts.macs(result.module, model.example) == counts.macs(small.module, model.example)
    assert not any("asked for" in note for note in context.log.notes)


def test_masked_weights_survive_the_cut() -> None:
    model = run(
        chain("prune_weights(sparsity=0.5)"), prepared("cnn-small(width=16)"), step_context()
    )
    result = run(chain("prune_channels(channels=0.5)"), model, step_context())
    assert result.sparse == model.sparse
    assert all((result.module.get_parameter(name) == 0).any() for name in result.sparse)


def test_streams_are_narrowed_last() -> None:
    """What they lose is lost to all blocks; where inner widths do not suffice, they go along."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.inner, self.back = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
            self.out = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = x + self.back(F.relu(self.inner(x)))
            return self.out(x.mean((2, 3)))

    model = Model(Residual().eval(), (torch.randn(4, 3, 8, 8),))
    widths = {}
    for text in ("macs=0.5", "macs=0.5, streams='alike'", "macs=0.3", "channels=0.5"):
        module = run(chain(f"prune_channels({text}, round_to=1)"), model, step_context()).module
        widths[text] = (module.stem.out_channels, module.inner.out_channels)
    assert widths["macs=0.5"][0] == 32 > widths["macs=0.5, streams='alike'"][0]
    assert widths["macs=0.5"][1] < widths["macs=0.5, streams='alike'"][1]
    assert widths["macs=0.3"][0] == 32
    assert widths["channels=0.5"] == (16, 32)
    deeper = run(chain("prune_channels(macs=0.02, round_to=1)"), model, step_context()).module
    assert deeper.stem.out_channels < 32, "inner widths alone do not give that"
