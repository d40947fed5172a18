"""Timed files compute what the layers do, and what is taken follows from the seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from made import convolutions
from torch import nn

from compress.deploy.session import session
from compress.lowrank.forms import Call, forms_of, made_up, whole
from compress.lowrank.latency import TRIED, by_latency, layer_file, thinned, timed
from compress.lowrank.layers import target_layers
from compress.lowrank.plan import ways
from compress.lowrank.ranks import Candidate


def answer(content: bytes, x: torch.Tensor) -> np.ndarray:
    return session(content, threads=1).run({"input": x.numpy()})


@settings(max_examples=15, deadline=None)
@given(layer=convolutions())
def test_files_of_convolutions_compute_what_the_layers_do(layer: nn.Conv2d) -> None:
    x = torch.randn(1, layer.in_channels, 9, 8)
    for form in forms_of(layer):
        found = answer(layer_file(list(whole(layer, form)), tuple(x.shape)), x)
        np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7), (1, 5, 7)])
def test_files_of_linear_layers_compute_what_the_layers_do(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(7, 4), torch.randn(shape)
    for parts in ([layer], list(whole(layer, "channel"))):
        content = layer_file(parts, shape)
        onnx.checker.check_model(onnx.load_from_string(content))
        np.testing.assert_allclose(answer(content, x), layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_files_are_the_same_every_time() -> None:
    layer = nn.Conv2d(16, 16, 3)
    files = [layer_file(list(made_up(layer, "tucker", (8, 8))), (1, 16, 8, 8)) for _ in range(2)]
    assert files[0] == files[1]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    ).eval()


def macs_of_file(content: bytes, shape: Sequence[int]) -> int:
    """Count the weights of a file's convolutions and products, once for each position."""
    graph = onnx.load_from_string(content).graph
    stored = {one.name: list(one.dims) for one in graph.initializer}
    return sum(int(np.prod(dims)) for name, dims in stored.items() if "weight" in name)


def test_alike_layers_are_timed_once_and_ways_must_gain_a_tenth() -> None:
    module = net()
    found, _ = target_layers(module, (torch.randn(2, 3, 8, 8),))
    options = thinned(ways(found, ("channel", "spatial"), 8, True))
    asked: list[int] = []

    def clock(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, list[float]]:
        """A factorized file takes as long as its weights, and half of the layer's on top."""
        asked.append(len(files))
        answers = {}
        for name, content in files.items():
            assert answer(content, torch.from_numpy(samples[0])).size
            parts = len(onnx.load_from_string(content).graph.node)
            cost = float(macs_of_file(content, samples[0].shape))
            answers[name] = [cost + 4000 * (parts > 1), cost + 4000 * (parts > 1), 1e9]
        return answers

    whole_seconds, faster = timed(found, options, clock, 1.0)
    distinct = {
        (target.path in ("1", "2"), one) for target in found for one in options[target.path]
    }
    assert sum(asked) == len({one for shared, one in distinct if shared}) + 3 + sum(
        not shared for shared, _ in distinct
    )
    assert whole_seconds["1"] == whole_seconds["2"] == 32 * 32 * 9
    assert faster["1"] == faster["2"]
    for one in options["1"]:
        kept = [other.seconds for other in faster["1"] if other.ranks == one.ranks]
        weights = one.macs / 64 + 4000
        if weights <= 0.9 * 9216:
            assert weights in kept
    assert all(one.seconds <= 0.9 * 9216 for one in faster["1"])


def test_what_cannot_be_timed_is_not_taken() -> None:
    found, _ = target_layers(net(), (torch.randn(2, 3, 8, 8),))
    options = thinned(ways(found, ("channel",), 8, True))
    whole_seconds, faster = timed(found, options, lambda *_: {}, 1.0)
    assert set(whole_seconds.values()) == {0.0}
    assert not any(faster.values())


def test_few_ranks_are_tried_from_the_cheapest_to_the_dearest() -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1)
    found = [
        type(
            "S", (), {"path": "a", "layer": layer, "calls": (Call((1, 256, 4, 4), (1, 256, 4, 4)),)}
        )
    ]
    options = ways(found, ("channel", "tucker"), 8, False)  # type: ignore[arg-type]
    some = thinned(options)["a"]
    for form in ("channel", "tucker"):
        every = sorted(one.macs for one in options["a"] if one.form == form)
        tried = [one.macs for one in some if one.form == form]
        assert len(tried) == TRIED
        assert (tried[0], tried[-1]) == (every[0], every[-1])


def candidate(seconds: float, lost: float) -> Candidate:
    return Candidate("channel", (8,), 1, 1, lost, seconds)


def test_the_budget_is_corrected_by_what_the_whole_takes() -> None:
    """Layers of 6 of 10 seconds, whose gains count for half in the whole."""
    whole_seconds = {"a": 3.0, "b": 3.0}
    options = {
        path: [candidate(3 - gain, gain / 10) for gain in (0.5, 1.0, 1.5, 2.0, 2.5)]
        for path in whole_seconds
    }
    tried: list[float] = []

    def times(taken: Mapping[str, Candidate]) -> float:
        gain = sum(whole_seconds[path] - one.seconds for path, one in taken.items())
        tried.append(gain)
        return (10 - gain / 2) / 10

    found = by_latency(whole_seconds, options, 10.0, 8.0, times)
    # 2 of 6 seconds give 1, where 2 were asked for: one more is asked, and then half a one.
    assert tried == [2.0, 3.0, 3.5]
    gain = sum(whole_seconds[path] - one.seconds for path, one in found.taken.items())
    assert gain == 3.5


def test_out_of_reach_takes_what_costs_little() -> None:
    options = {"a": [candidate(1.0, 0.05), candidate(0.1, 0.4)]}
    found = by_latency({"a": 3.0}, options, 10.0, 1.0, lambda taken: 0.8)
    assert not found.complete
    assert found.taken["a"].lost == 0.05
