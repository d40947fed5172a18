"""The least channels shrink most, by a penalty that is what its formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import nn

from compress.compressor import run
from compress.model import Model
from compress.techniques import chain
from compress.techniques.channel_proof import sound_groups
from compress.techniques.sparsify import Sparsify, _Pull


def test_the_penalty_is_its_formula() -> None:
    """By hand, on one hidden layer: rows of the first weight go with columns of the second."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model = Model(net, (torch.randn(2, 4),))
    pull = _Pull(model, sound_groups(net, model.items()), make_context(small_digits()))
    assert float(pull.penalty()) == 0
    pull.renew(0)
    first, second = (net[i].weight.detach().double().numpy() for i in (0, 2))
    norms = ((first**2).sum(1) + (second**2).sum(0)) / 2
    gamma = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
    assert gamma.min() == 1
    assert gamma.max() == 16
    expected = (gamma * ((first**2).sum(1) + (second**2).sum(0))).sum() / 2
    assert float(pull.penalty().detach()) == pytest.approx(expected, rel=1e-5)
    pull.penalty().backward()
    np.testing.assert_allclose(net[0].weight.grad, gamma[:, None] * first, rtol=1e-5)


def test_streams_are_spared() -> None:
    data = small_digits()
    model = fresh_model(data, "resnet20")
    pull = _Pull(model, sound_groups(model.module, model.items()), make_context(data))
    pull.renew(0)
    names = set(pull.factors)
    assert "layer1.0.conv1.weight" in names
    assert not names & {"conv1.weight", "bn1.weight", "linear.weight"}


def test_after_it_pruning_changes_the_outputs_less() -> None:
    """What is cut has a smaller share of its layer's energy than after plain training."""
    data = small_digits()
    lost = {}
    for strength in (0.0, 0.5):
        context = make_context(data)
        text = f"sparsify(epochs=8, strength={strength}, learning_rate=0.05)"
        model = run(chain(text), fresh_model(data), context)
        conv = next(m for m in model.module.modules() if isinstance(m, nn.Conv2d))
        norms = conv.weight.detach().square().flatten(1).sum(1).sort().values
        lost[strength] = float(norms[: len(norms) // 2].sum() / norms.sum())
    assert lost[0.5] < 0.7 * lost[0.0]


def test_without_strength_it_is_plain_training() -> None:
    data = small_digits()
    results = [
        run(chain(text), fresh_model(data), make_context(data)).module
        for text in (
            "sparsify(epochs=1, strength=0.0)",
            "finetune(epochs=1, optimizer='sgd', learning_rate=0.01)",
        )
    ]
    for one, other in zip(*(module.parameters() for module in results), strict=True):
        torch.testing.assert_close(one, other)


def test_a_net_without_channels_to_cut_is_trained_plainly_with_a_note() -> None:
    data = small_digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    context = make_context(data)
    run(chain("sparsify(epochs=1)"), Model(net, (torch.randn(2, 1, 8, 8),)), context)
    assert any("without a penalty" in note for note in context.log.notes)
    assert Sparsify().needs == {"train", "labels"}
