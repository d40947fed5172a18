"""MACs and parameters against formulas."""

from __future__ import annotations

import torch
from torch import nn

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
    assert counts.params(net) == 16 + 4 + 4
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1)
        net[1].bias.fill_(1)
    assert counts.nonzero_params(net) == 8


def test_replacing_a_layer_keeps_the_mode() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2))).eval()
    replace_layer(net, "0.0", nn.Linear(2, 2))
    assert not net[0][0].training
