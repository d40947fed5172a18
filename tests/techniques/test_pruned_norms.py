"""Attention and norms over channels, without some: equal to a reference by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_nets import Net, kept_rows, of, pruned, share
from torch import Tensor, nn

from compress.attention import Attention
from compress.model import Model, forward


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
    assert type(attention) is Attention
    assert attention.qkv.weight.shape == (24, 8)
    kept = kept_rows(whole.patch.weight.detach(), result.patch.weight.detach())
    # Keys and values lie in the second and the third part of the packed weight.
    rows = [
        [row[:1] for row in before.in_proj_weight[16:].detach()[:, kept].tolist()].index(row[:1])
        for row in attention.qkv.weight[8:].tolist()
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
    some = x[..., kept]
    ours, _ = attention(some, some, some)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


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


class Standardized(nn.Conv2d):
    """Weights that are standardised in each call, as in Qiao et al. 2019, and a gain."""

    def __init__(self, *sizes: int, gain: bool = True, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        scale = None if self.gain is None else self.gain.view(-1)
        rows = F.batch_norm(rows, None, None, scale, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_standardised_weights_take_their_statistics_over_the_inputs_that_are_kept(
    gain: bool, kernel: int
) -> None:
    """The reference by hand, in numpy."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(Standardized(3, 32, 3, gain=gain), nn.ReLU(), Standardized(32, 48, kernel, gain=gain)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )
    model = of(net, 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert (result[0].out_channels, result[2].in_channels, result[2].out_channels) == (16, 16, 24)
    assert [r["layer"] for r in context.log.rows if "left_alone" in r] == ["6"]
    kept, last = (kept_rows(net[n].bias.detach(), result[n].bias.detach()) for n in (0, 2))
    with torch.no_grad():
        hidden = F.relu(net[0](model.probe[0])).double().numpy()[:, kept]
        rows = net[2].weight.double().numpy()[last][:, kept].reshape(len(last), -1)
        rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)
        if gain:
            rows = rows * net[2].gain.double().numpy()[last].reshape(-1, 1)
        weight = torch.from_numpy(rows.reshape(len(last), len(kept), kernel, kernel))
        bias = net[2].bias.double()[last]
        out = F.relu(F.conv2d(torch.from_numpy(hidden), weight, bias)).mean((2, 3))
        expected = out @ net[6].weight.double()[:, last].T + net[6].bias.double()
    torch.testing.assert_close(
        forward(result, model.probe).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_a_response_norm_takes_its_mean_over_the_channels_that_are_kept() -> None:
    from timm.layers.grn import GlobalResponseNorm

    norm = GlobalResponseNorm(16, channels_last=False)
    net = Net(
        lambda m, x: m.out(m.norm(F.relu(m.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 16, 3),
        norm=norm,
        out=nn.Linear(16, 10),
    )
    for vector in norm.parameters():
        nn.init.normal_(vector)
    model = of(net, 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", model)
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    kept = kept_rows(norm.weight.detach(), result.norm.weight.detach())
    assert len(kept) == 8
    inputs = model.items(3)
    x = F.relu(net.stem(*inputs))[:, kept]
    size = x.square().sum((2, 3), keepdim=True).sqrt()
    x_hat = x * size / (size.mean(1, keepdim=True) + norm.eps)
    weight, bias = (one[kept].view(1, -1, 1, 1) for one in (norm.weight, norm.bias))
    expected = F.linear((x + weight * x_hat + bias).mean((2, 3)), net.out.weight[:, kept])
    torch.testing.assert_close(forward(result, inputs), expected + net.out.bias)


class Widths(nn.Module):
    """Two norms of other widths, called as functions, of two layers."""

    def __init__(self, rms: bool, weights: bool) -> None:
        super().__init__()
        self.stem, self.mix, self.out = nn.Linear(6, 16), nn.Linear(16, 40), nn.Linear(40, 3)
        self.function = F.rms_norm if rms else F.layer_norm
        sizes = (16, 40) if weights else ()
        self.scales = nn.ParameterList(torch.rand(size) + 0.5 for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate((self.stem, self.mix)):
            x = F.relu(layer(x))
            weight = self.scales[number] if len(self.scales) else None
            x = self.function(x, x.shape[-1:], weight)
        return self.out(x)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_norms_of_two_widths_in_one_layer_are_cut_each_by_its_own_channels(
    rms: bool, weights: bool
) -> None:
    """The reference by hand, in numpy."""
    torch.manual_seed(0)
    net = Widths(rms, weights)
    model = Model(net.eval(), (torch.randn(3, 6),))
    result, context = pruned("prune_channels(channels=0.6, round_to=1)", model)
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    kept = [
        kept_rows(a.bias.detach(), b.bias.detach())
        for a, b in ((net.stem, result.stem), (net.mix, result.mix))
    ]
    assert [len(one) for one in kept] == [10, 24]
    x, before = model.probe[0].double().numpy(), list(range(6))
    for number, (layer, rows) in enumerate(zip((net.stem, net.mix), kept, strict=True)):
        weight = layer.weight.detach().double().numpy()[rows][:, before]
        x = np.maximum(x @ weight.T + layer.bias.detach().double().numpy()[rows], 0)
        x = x if rms else x - x.mean(-1, keepdims=True)
        eps = torch.finfo(torch.float32).eps if rms else 1e-5
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        x = x * net.scales[number].detach().numpy()[rows] if weights else x
        before = rows
    expected = x @ net.out.weight.detach().numpy()[:, before].T + net.out.bias.detach().numpy()
    np.testing.assert_allclose(forward(result, model.probe).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_without_weights_that_is_called_twice_has_one_width() -> None:
    def read(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(m.norm(F.relu(m.b(m.norm(m.a(x))))))

    layers = {"a": nn.Linear(5, 16), "b": nn.Linear(16, 16), "out": nn.Linear(16, 3)}
    net = Net(read, **layers, norm=nn.LayerNorm(16, elementwise_affine=False))
    model = Model(net.eval(), (torch.randn(4, 5),))
    result, _ = pruned("prune_channels(channels=0.5, round_to=1)", model)
    assert (result.a.out_features, result.b.out_features) == (8, 8)
    assert result.norm.normalized_shape == (8,)


def test_groups_of_a_norm_whose_number_is_in_the_code_stay_with_the_reason() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.last(F.group_norm(m.stem(x), 4))).mean((2, 3))),
        stem=nn.Conv2d(3, 32, 3),
        last=nn.Conv2d(32, 16, 3),
        out=nn.Linear(16, 10),
    )
    result, context = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    left = {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}
    assert (result.stem.out_channels, result.last.out_channels) == (32, 8)
    assert left["stem"].endswith("normalises 4 groups, a number that would not follow")
