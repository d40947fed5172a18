"""Kinds of nets that pruning has to follow: each is cut, or left whole for the true reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pruned_nets import Net, kept_rows, of, pruned, recurrent, share, shuffled
from torch import Tensor, nn

from compress.model import forward


def test_channels_that_are_shuffled_are_cut() -> None:
    """ShuffleNet splits, concatenates and shuffles; inside its blocks there is much to cut."""
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    model = of(module, 3, 64, 64)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert share(result, model) < 0.75


def test_a_shuffle_by_view_and_transpose_keeps_its_order() -> None:
    net = shuffled()
    model = of(net, 3, 16, 16)
    result, _ = pruned("prune_channels(macs=0.76, round_to=2)", model)
    assert 0.98 * 0.76 <= share(result, model) <= 0.76
    assert result.grouped.groups == result.again.groups == 2
    assert min(m.out_channels for m in (result.stem, result.grouped, result.again)) > 16


def test_a_convolution_before_a_recurrent_layer_is_cut() -> None:
    net = recurrent(8, 12)
    model = of(net, 1, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=4)", model)
    assert (result.stem.out_channels, result.mix.out_channels) == (8, 4)
    assert (result.gru.input_size, result.gru.hidden_size) == (32, 12)
    [row] = [row for row in context.log.rows if row.get("layer") == "gru"]
    assert "fixed size" in row["left_alone"]


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


def test_a_weight_that_is_computed_in_every_call_is_named() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight.flip(0) * 2, self.bias)

    net = nn.Sequential(
        *(Doubled(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    )
    result, context = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    assert result[0].weight.shape == (32, 3, 3, 3)
    assert context.log.notes == [
        "prune_channels: left the model whole ('0': its weight is computed anew in every call)"
    ]


def test_a_scale_that_keeps_its_shape_as_a_tuple_is_cut() -> None:
    class Scale(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.shape, self.scale = (width, 1, 1), nn.Parameter(torch.rand(width) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale.view(self.shape)

    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), Scale(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 10),
    )
    result, _ = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    assert result[1].shape == (16, 1, 1)
    kept = kept_rows(net[0].weight.detach(), result[0].weight.detach())
    assert torch.equal(result[1].scale, net[1].scale[kept])


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


class Widening(nn.Module):
    """ReXNet's block: the shortcut is added to the first of the channels that it makes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.in_channels, self.conv = before, nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made = F.relu(self.conv(x))
        return torch.cat([made[:, : self.in_channels] + x, made[:, self.in_channels :]], 1)


def test_a_part_that_begins_at_a_number_of_its_layer_is_cut_and_the_number_follows() -> None:
    net = Net(
        lambda m, x: m.out(m.last(m.first(F.relu(m.stem(x)))).mean((2, 3))),
        stem=nn.Conv2d(3, 12, 3),
        first=Widening(12, 20),
        last=Widening(20, 28),
        out=nn.Linear(28, 10),
    )
    model = of(net, 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", model)
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    assert result.first.in_channels == result.stem.out_channels == 6
    assert result.last.in_channels == result.first.conv.out_channels == 10
    # By hand: the rows of the convolutions say which channels are there.
    gone = [
        [index for index in range(len(b)) if index not in kept_rows(b.detach(), a.detach())]
        for b, a in zip(
            (net.stem.bias, net.first.conv.bias, net.last.conv.bias),
            (result.stem.bias, result.first.conv.bias, result.last.conv.bias),
            strict=True,
        )
    ]
    with torch.no_grad():
        for layer, index in zip((net.stem, net.first.conv, net.last.conv), gone, strict=True):
            layer.weight[index] = 0
            layer.bias[index] = 0
    inputs = model.items(3)
    torch.testing.assert_close(forward(result, inputs), forward(net, inputs))


def test_equal_parts_of_a_width_that_the_layer_keeps_are_cut() -> None:
    """Res2Net's block: each part but the first goes through a convolution of its own."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.one = 8, nn.Conv2d(8, 8, 3, padding=1)
            self.other = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x.split(self.width, 1)
            b = F.relu(self.one(b))
            return torch.cat([a, b, F.relu(self.other(b + c))], 1)

    net = Net(
        lambda m, x: m.out(m.parts(F.relu(m.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 24, 3),
        parts=Parts(),
        out=nn.Linear(24, 10),
    )
    model = of(net, 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", model)
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    assert result.parts.width == result.parts.other.out_channels == 4
    assert net.parts.width == 8


def test_a_number_that_is_as_large_by_chance_does_no_harm() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size, self.inner = 16, nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = F.adaptive_avg_pool1d(x.transpose(1, 2), self.size).transpose(1, 2)
            return self.inner(x.reshape(len(x), -1, 16))

    net = Net(
        lambda m, x: m.out(m.pooled(m.stem(x)).mean(1)),
        stem=nn.Linear(5, 16),
        pooled=Pooled(),
        out=nn.Linear(16, 10),
    )
    model = of(net, 20, 5)
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", model)
    left = {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}
    assert result.pooled.size == 16
    assert set(left) == {"stem", "out"}
    assert left["stem"].startswith("cut, it")


def test_a_number_that_no_size_is_taken_from_stays_and_the_others_are_logged() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.queue, self.scale = 32, 32, 32

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * F.relu(x.view(len(x), self.width, *x.shape[2:]))

    net = Net(
        lambda m, x: m.out(m.last(m.viewed(m.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 32, 3),
        viewed=Viewed(),
        last=nn.Conv2d(32, 16, 3),
        out=nn.Linear(16, 10),
    )
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", of(net, 3, 8, 8))
    assert result.stem.out_channels == 16
    sizes = (result.viewed.width, result.viewed.queue, result.viewed.scale)
    assert sizes == (16, 32, 32)
    [row] = [row for row in context.log.rows if row["kind"] == "number"]
    assert row == {"kind": "number", "layer": "viewed", "name": "width", "before": 32, "after": 16}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_weights_of_scripted_layers_stay_and_what_else_there_is_is_cut() -> None:
    net = Net(
        lambda m, x: m.out(m.last(m.inner(m.act(m.first(m.stem(x))))).mean((2, 3))),
        stem=nn.Conv2d(3, 16, 3),
        first=nn.Conv2d(16, 32, 3),
        act=torch.jit.script(nn.SiLU()),
        inner=torch.jit.script(nn.Conv2d(32, 24, 3)),
        last=nn.Conv2d(24, 8, 3),
        out=nn.Linear(8, 10),
    )
    result, context = pruned("prune_channels(channels=0.5, round_to=1)", of(net, 3, 10, 10))
    widths = [len(getattr(result, name).weight) for name in ("stem", "first", "inner", "last")]
    assert widths == [8, 32, 24, 4]
    left = {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}
    assert left["first"] == "'inner' is compiled by torch.jit"


def test_a_layer_whose_channels_are_returned_beside_the_logits_stays_and_a_note_says_so() -> None:
    def give(m: nn.Module, x: Tensor) -> Any:
        features = F.relu(m.last(F.relu(m.stem(x)))).mean((2, 3))
        return {"features": features, "logits": m.out(features)}

    layers = {"stem": nn.Conv2d(3, 16, 3), "last": nn.Conv2d(16, 32, 3)}
    net = Net(give, **layers, out=nn.Linear(32, 10))
    result, context = pruned("prune_channels(channels=0.5)", of(net, 3, 8, 8))
    left = {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}
    assert (result.stem.out_channels, result.last.out_channels) == (8, 32)
    assert left == {
        "out": "it produces the model's output",
        "last": "the model also returns it, beside the logits: it would change shape",
    }
    assert "'last': the model also returns it" in context.log.notes[0]
