"""MACs and parameters against formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import DeformConv2d

from compress import counts
from compress.surgery import replace_layer


def test_macs_of_convolutions_and_linear_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8 * 3 * 9 per pixel, 10 x 12 pixels
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4),  # 16 * 2 * 9 per pixel, 5 x 6 pixels
        nn.Flatten(),
        nn.Linear(16 * 30, 7),
    )
    expected = 8 * 3 * 9 * 120 + 16 * 2 * 9 * 30 + 480 * 7
    assert counts.macs(net, (torch.zeros(1, 3, 10, 12),)) == expected
    assert counts.macs(net, (torch.zeros(2, 3, 10, 12),)) == 2 * expected


def test_attention_counts_its_products_in_eval_mode() -> None:
    width, tokens = 16, 5
    layer = nn.TransformerEncoderLayer(width, 4, dim_feedforward=32, batch_first=True).eval()
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    mlp = 2 * tokens * width * 32
    assert counts.macs(layer, (torch.zeros(1, tokens, width),)) == projections + products + mlp


def test_a_tied_parameter_counts_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    example = (torch.zeros(1, 4),)
    assert counts.count(net, example).params == 16 + 4 + 4
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1)
        net[1].bias.fill_(1)
    assert counts.count(net, example).nonzero_params == 8


def test_replacing_a_layer_keeps_the_mode() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2))).eval()
    replace_layer(net, "0.0", nn.Linear(2, 2))
    assert not net[0][0].training


class Calls(nn.Module):
    """A module that is one function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (lambda a, b: torch.einsum("bik,bjk->bij", a, b), [(2, 3, 4), (2, 5, 4)], 2 * 3 * 4 * 5),
        (torch.matmul, [(3, 4), (4,)], 3 * 4),
        (torch.matmul, [(2, 3, 4), (4,)], 2 * 3 * 4),
        (lambda a, b: torch.dot(a, b)[None], [(4,), (4,)], 4),
        (torch.addmv, [(3,), (3, 4), (4,)], 3 * 4),
        (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (
            lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v),
            [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
            2 * (2 * 3 * 5 * 7 * 8),
        ),
    ],
)
def test_macs_of_functions(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: int
) -> None:
    inputs = tuple(torch.ones(shape) for shape in shapes)
    assert counts.count(Calls(function), inputs).macs == expected
    assert counts.macs(Calls(function), inputs) == expected


def test_a_transposed_and_a_depthwise_convolution() -> None:
    net = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),  # 3 * 4 per input value
        nn.Conv2d(6, 6, 3, groups=6),  # 9 per output value
    )
    assert counts.macs(net, (torch.zeros(1, 4, 5, 5),)) == 100 * 3 * 4 + 6 * 8 * 8 * 9


def test_multihead_attention_of_several_lengths() -> None:
    width, queries, keys = 16, 5, 7
    layer = nn.MultiheadAttention(width, 4, batch_first=True)

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return self.layer(query, key, key, need_weights=False)[0]

    projections = (2 * queries + 2 * keys) * width * width
    products = 2 * queries * keys * width
    example = (torch.zeros(1, queries, width), torch.zeros(1, keys, width))
    assert counts.macs(Cross(), example) == projections + products


def test_a_block_of_a_vision_transformer() -> None:
    width, hidden, tokens = 32, 64, 10
    block = EncoderBlock(4, width, hidden, 0.0, 0.0, nn.LayerNorm)
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width
    result = counts.count(block, (torch.zeros(1, tokens, width),))
    uncounted = result.uncounted
    assert result.macs == attention + 2 * tokens * width * hidden
    assert (uncounted["native_layer_norm"], uncounted["gelu"], uncounted["add"]) == (2, 1, 2)


def test_what_is_not_counted_is_named_with_its_calls() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 4)),
    )
    example = (torch.zeros(1, 3, 10, 10),)
    result = counts.count(net.train(), example)
    uncounted = dict(result.uncounted)
    assert result.macs == counts.macs(net, example)
    assert net.training
    assert uncounted.pop("_native_batch_norm_legit_no_training") == 1
    assert uncounted == {"relu": 2, "max_pool2d_with_indices": 1, "mean": 1}
    assert counts.left_out(uncounted) == ""


def test_moving_values_about_is_no_arithmetic() -> None:
    def shuffle(values: Tensor) -> Tensor:
        parts = values.reshape(2, 2, 3).transpose(0, 1).contiguous().chunk(2)
        padded = nn.functional.pad(torch.cat(parts, 1), (1, 1))
        return padded[:, torch.tensor([1, 0])].clone().roll(1)

    result = counts.count(Calls(shuffle), (torch.ones(4, 3),))
    assert (result.macs, result.uncounted) == (0, {})


def test_operators_that_may_hold_macs_are_said_to_be_left_out() -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DeformConv2d(3, 4, 3)

        def forward(self, images: Tensor, offsets: Tensor) -> Tensor:
            return self.layer(images, offsets) + self.layer(images, offsets)

    example = (torch.zeros(1, 3, 8, 8), torch.zeros(1, 18, 6, 6))
    uncounted = counts.count(Deformed(), example).uncounted
    assert uncounted["torchvision.deform_conv2d"] == 2
    assert counts.left_out(uncounted).startswith("MACs leave out ")
    assert "2 calls of torchvision.deform_conv2d" in counts.left_out(uncounted)
    assert counts.left_out({"_cudnn_rnn": 1, "relu": 4}) == "MACs leave out 1 call of _cudnn_rnn"


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_are_counted(kind: type[nn.RNNBase], gates: int, directions: int) -> None:
    """However torch computes them: step by step, or as one operator of oneDNN."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(6, 5, 2, batch_first=True, bidirectional=directions == 2)  # type: ignore[arg-type]

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs)[0][:, -1]

    first, second = 6 + 5, 5 * directions + 5
    expected = 3 * 7 * directions * gates * 5 * (first + second)
    result = counts.count(Recurrent().eval(), (torch.zeros(3, 7, 6),))
    assert result.macs == expected
    assert not counts.left_out(result.uncounted)


# --- what is deployed -----------------------------------------------------------------------


class TwoHeads(nn.Module):
    """An auxiliary head beside the logits, from a body that is used by both."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(7))

    def forward(self, inputs: Tensor) -> Any:
        with torch.no_grad():  # a frozen body counts all the same
            hidden = self.body(inputs).relu_().detach()
        return {"aux": self.aux(hidden), "logits": self.out(hidden)}


def test_only_what_the_logits_depend_on_is_counted() -> None:
    net = TwoHeads().eval()
    nn.init.zeros_(net.out.bias)
    result = counts.count(net, (torch.zeros(2, 6),))
    assert result.params == (6 * 8 + 8) + (8 * 3 + 3)
    assert result.nonzero_params == result.params - 3
    assert result.unused_params == 8 * 3 + 3 + 7
    assert result.macs == 2 * (6 * 8 + 8 * 3) == counts.macs(net, (torch.zeros(2, 6),))
    used = [*net.body.parameters(), *net.out.parameters()]
    assert [*map(id, counts.deployed(net, (torch.zeros(1, 6),)))] == [*map(id, used)]


@pytest.mark.parametrize("training", [False, True])
def test_googlenet_has_the_published_cost_without_its_auxiliary_heads(training: bool) -> None:
    published = torchvision.models.GoogLeNet_Weights.DEFAULT.meta
    net = torchvision.models.googlenet(init_weights=False).train(training)
    result = counts.count(net, (torch.zeros(1, 3, 224, 224),))
    assert result.params == published["num_params"] == 6_624_904
    assert result.macs / 1e9 == pytest.approx(published["_ops"], abs=5e-4)
    heads = [*net.aux1.parameters(), *net.aux2.parameters()]
    assert result.unused_params == sum(parameter.numel() for parameter in heads)
    assert net.training == training


def test_of_two_branches_the_costlier_counts() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            yes, no = lambda x: self.b(self.a(x)), lambda x: self.a(x)
            return self.c(torch.cond(inputs.sum() > 0, yes, no, (inputs,)))

    for sign in (1, -1):
        result = counts.count(Branches().eval(), (sign * torch.ones(2, 8),))
        assert result.macs == 2 * 3 * 64
        assert (result.params, result.unused_params) == (3 * 72, 0)
