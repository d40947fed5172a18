"""What can be replaced is replaced with equal outputs; the rest is named with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models import SwinTransformer, VisionTransformer

from compress.lowrank.layers import PAST, target_layers


class Net(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight)) * 16


class Standardized(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Linear):
    """A subclass that changes nothing."""


def images(count: int = 2, channels: int = 3, side: int = 8) -> tuple[Tensor]:
    return (torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0)),)


def test_subclasses_are_taken_where_they_compute_the_same() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), Standardized(8, 8, 3), nn.Flatten(), Named(128, 8), Cosine(8, 5)
    ).eval()
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["0", "3"]
    assert left == {
        "1": "a Standardized, which has a forward of its own",
        "4": "a Cosine, which has a forward of its own",
    }


def test_grouped_padded_and_other_convolutions_are_left_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(2),
        nn.Conv1d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(136, 4),
    ).eval()
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["5"]
    assert left == {
        "0": "a grouped convolution",
        "1": "a convolution with reflect padding",
        "3": "a 1-d convolution that cannot become one of height 1",
    }


def test_tied_weights_stay_tied() -> None:
    net = Net(
        lambda m, x: m.out(F.relu(m.third(F.relu(m.second(F.relu(m.first(x.mean((2, 3))))))))),
        first=nn.Linear(3, 16),
        second=nn.Linear(16, 3),
        third=nn.Linear(3, 16),
        out=nn.Linear(16, 4),
    ).eval()
    net.third.weight = net.first.weight
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["second", "out"]
    assert left == dict.fromkeys(("first", "third"), "another layer shares its weight or bias")


def test_one_layer_under_two_names_is_one_site_with_all_its_calls() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.MaxPool2d(2), layer, nn.Flatten()).eval()
    before = copy.deepcopy(net)
    found, left = target_layers(net, images())
    assert [(target.path, len(target.calls)) for target in found] == [("0", 1), ("1", 2)]
    assert [call.left for call in found[1].calls] == [(1, 4, 8, 8), (1, 4, 4, 4)]
    assert not left
    assert net[1] is net[3]
    torch.testing.assert_close(net(*images()), before(*images()), rtol=0, atol=0)


def test_hooks_and_computed_weights_are_left_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(net[1], "weight", Double())
    net[2].register_forward_hook(lambda layer, inputs, output: output + 1)
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["3"]
    computed_or_hooked = "its weight is computed anew in every call, or it has hooks"
    assert left == dict.fromkeys("12", computed_or_hooked)


def test_weights_that_are_read_past_their_forward_are_found() -> None:
    encoder = Net(
        lambda m, x: m.out(m.layer(m.patches(x).flatten(2).transpose(1, 2)).mean(1)),
        patches=nn.Conv2d(3, 16, 2, 2),
        layer=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        out=nn.Linear(16, 4),
    ).eval()
    found, left = target_layers(encoder, images())
    assert [target.path for target in found] == ["patches", "out"]
    assert left["layer.linear1"].startswith(PAST)
    assert left["layer.linear2"].startswith(PAST)
    assert "MultiheadAttention" in left["layer.self_attn.out_proj"]

    silent = Net(
        lambda m, x: m.b(F.relu(m.a(x.flatten(1)))) + m.kept[0].sum(),
        a=nn.Linear(192, 8),
        b=nn.Linear(8, 4),
    ).eval()
    silent.kept = [silent.a.weight]  # the values, also when the layer has been replaced
    found, left = target_layers(silent, images())
    assert [target.path for target in found] == ["a", "b"]  # and so it still answers the same


def test_a_layer_that_is_asked_for_its_weight_is_left_alone_and_the_others_are_not() -> None:
    net = Net(
        lambda m, x: m.b(F.linear(x.flatten(1), m.a.weight)) + m.c(x.flatten(1)),
        a=nn.Linear(192, 8),
        b=nn.Linear(8, 4),
        c=nn.Linear(192, 4),
    ).eval()
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["b", "c"]
    assert left == {"a": PAST}


def test_torchvision_transformers_keep_what_they_read() -> None:
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=5).eval()
    found, left = target_layers(swin, images(side=32))
    assert {path.rpartition(".")[2] for path in left} == {"qkv", "proj"}
    assert all(reason.startswith(PAST) for reason in left.values())
    assert {target.path for target in found} >= {"head", "features.0.0", "features.1.0.mlp.0"}
    vit = VisionTransformer(32, 8, 1, 2, 24, 48, num_classes=5).eval()
    found, left = target_layers(vit, images(side=32))
    assert [target.path.rpartition(".")[2] for target in found] == ["conv_proj", "0", "3", "head"]
    assert [path.rpartition(".")[2] for path in left] == ["self_attention", "out_proj"]


def test_what_the_answers_do_not_depend_on_is_left_alone() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.aside(x.flatten(1))
        return m.out(x.flatten(1))

    net = Net(forward, aside=nn.Linear(192, 4), out=nn.Linear(192, 4), never=nn.Linear(3, 4)).eval()
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["out"]
    assert left == dict.fromkeys(("aside", "never"), "the model's answers do not depend on it")


@pytest.mark.parametrize("zero", [False, True])
def test_looking_changes_nothing(zero: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    if zero:
        nn.init.zeros_(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["0", "3"]
    assert not left
    assert not net[0]._forward_hooks
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_layer_that_is_the_whole_model_is_left_alone() -> None:
    found, left = target_layers(nn.Linear(3, 4).eval(), (torch.randn(2, 3),))
    assert not found
    assert left == {"": "it is the whole model"}
