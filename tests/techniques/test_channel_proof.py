"""What is proven: at unlike shares, at the widths wanted, in float64 where that decides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pruned_nets import Net, of, pruned, share
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

from compress.context import StepContext
from compress.model import Model, forward
from compress.techniques.channel_cut import SINGLE, cut, differs_from_zeroed, zeroed
from compress.techniques.channel_proof import sound_groups


def left(context: StepContext) -> dict[str, str]:
    return {row["layer"]: row["left_alone"] for row in context.log.rows if "left_alone" in row}


def tied() -> Net:
    """Return a net whose code takes the width of one layer for half of another's."""

    def view(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.first(x))
        y = m.second(x)
        y = y.view(len(x), 2 * x.shape[1], *x.shape[2:])
        return m.out(m.fourth(F.relu(m.third(F.relu(y)))).mean((2, 3)))

    return Net(
        view,
        first=nn.Conv2d(3, 16, 3, 2, 1),
        second=nn.Conv2d(16, 32, 3, 1, 1),
        third=nn.Conv2d(32, 64, 3, 1, 1),
        fourth=nn.Conv2d(64, 64, 3, 1, 1),
        out=nn.Linear(64, 10),
    )


@pytest.mark.parametrize(
    "text", ["channels=0.5", "channels=0.6", "macs=0.6", "macs=0.6, scope='global'", "params=0.6"]
)
def test_widths_that_the_code_ties_stay_and_the_others_are_cut(text: str) -> None:
    model = of(tied(), 3, 16, 16)
    result, context = pruned(f"prune_channels({text}, round_to=1)", model)
    assert (result.first.out_channels, result.second.out_channels) == (16, 32)
    assert max(result.third.out_channels, result.fourth.out_channels) < 64
    assert set(left(context)) == {"first", "second", "out"}
    assert "does not run" in left(context)["first"]


class NotAt24(nn.Module):
    """A layer that runs at every width but one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.shape[1] == 24:
            raise RuntimeError("no kernel for 24 channels")
        return F.relu(x)


@pytest.mark.parametrize("text", ["channels=0.75", "macs=0.7", "params=0.7"])
def test_a_group_that_cannot_be_cut_as_wanted_stays_whole_with_the_reason(text: str) -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.last(m.fussy(F.relu(m.stem(x))))).mean((2, 3))),
        stem=nn.Conv2d(3, 16, 3),
        fussy=NotAt24(),
        last=nn.Conv2d(32, 64, 3),
        out=nn.Linear(64, 10),
    )
    result, context = pruned(f"prune_channels({text})", of(net, 3, 12, 12))
    assert result.fussy.conv.out_channels == 32
    assert result.last.out_channels < 64
    assert set(left(context)) == {"fussy.conv", "out"}
    place = "in 'fussy' (NotAt24), RuntimeError: no kernel for 24 channels"
    assert left(context)["fussy.conv"] == f"cut, it does not run: {place}"
    assert "'fussy.conv'" in " ".join(context.log.notes)


@pytest.mark.parametrize("text", ["channels=0.7", "channels=0.37", "macs=0.5", "params=0.6"])
def test_the_second_swin_is_pruned_at_any_share(text: str) -> None:
    """Its bias of positions is computed from coordinates, beside what is computed from channels."""
    torch.manual_seed(0)
    blocks = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    net = SwinTransformer([4, 4], 24, [1, 1], [3, 6], [4, 4], num_classes=10, **blocks)
    model = of(net, 3, 32, 32)
    result, context = pruned(f"prune_channels({text}, round_to=1, streams='alike')", model)
    attention = result.features[1][0].attn
    width = result.features[0][0].out_channels
    assert width < 24
    assert attention.qkv.weight.shape == (3 * width, width)
    assert share(result, model) < 0.9
    tables = {f"features.{stage}.0.attn.cpb_mlp.2" for stage in (1, 3)}
    assert set(left(context)) == {"head", *tables}


def test_float64_decides_where_rounding_is_what_differs() -> None:
    net = Net(
        lambda m, x: m.out(torch.sin(1e6 * m.mix(F.relu(m.stem(x))))),
        stem=nn.Linear(8, 256),
        mix=nn.Linear(256, 64),
        out=nn.Linear(64, 10),
    )
    model = of(net, 8)
    channels = sound_groups(model.module, model.items())
    assert {group.path for group in channels.groups} == {"stem", "mix"}
    gone = channels.groups[0].classes[::2]
    done, reference = (
        cut(model.module, channels.plan, gone),
        zeroed(model.module, channels.plan, gone),
    )
    expected = forward(reference, model.probe)
    off = (forward(done.module, model.probe) - expected).abs().max() / expected.abs().max()
    assert off > SINGLE, "rounding alone is that much in float32"
    assert not differs_from_zeroed(model.module, done, channels.plan, model.probe)


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_a_difference_is_said_relative_to_the_output(scale: float) -> None:
    """The sigmoid of a channel of zeros is one half, and no part of what the cut net computes."""

    def squashed(m: nn.Module, x: Tensor) -> Tensor:
        return m.scale * m.out(torch.sigmoid(m.stem(x)))

    net = Net(squashed, stem=nn.Linear(8, 16), out=nn.Linear(16, 10))
    net.scale = scale
    model = Model(net.eval(), (torch.randn(2, 8),))
    reasons = sound_groups(model.module, model.items()).left
    found = reasons["stem"].removeprefix("cut, it differs from the original with these channels ")
    assert found.startswith("zeroed by 0.")
    assert found.endswith(" of the largest output")
