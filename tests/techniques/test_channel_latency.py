"""Widths within a time: what is timed, what the knapsack takes, and how the whole corrects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.session import session
from compress.errors import IllegalChain, StepFailed, UserError
from compress.lowrank.latency import Clock, Files, layer_file
from compress.model import Model, weights_hash
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain, channel_latency, channel_times, timed_files
from compress.techniques.channel_budget import options_of, within
from compress.techniques.channel_groups import Channels
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_scores import scores
from compress.techniques.channel_steps import liked_step, steps_of
from compress.techniques.channel_times import (
    Sizes,
    Span,
    Timed,
    Times,
    file_of,
    from_a_number,
    interpolated,
    measured,
    timed_layers,
)
from compress.techniques.criteria import L2

TASK = ImageClassification(
    "test", tuple("0123456789"), Preprocessing(3, (8, 8), (0.5,) * 3, (0.25,) * 3)
)
Samples = Sequence[np.ndarray]


class Net(nn.Module):
    """A stem, a block with a depthwise and a grouped convolution inside, a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 64, 1)
        self.each = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.back = nn.Conv2d(64, 32, 1)
        self.down = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.hidden, self.out = nn.Linear(48 * 16, 40), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.back(F.relu(self.each(F.relu(self.wide(x)))))
        return self.out(F.relu(self.hidden(F.relu(self.down(x)).flatten(1))))


def model_of(net: nn.Module | None = None) -> Model:
    torch.manual_seed(0)
    return Model((net or Net()).eval(), (torch.randn(2, 3, 8, 8),))


def context() -> StepContext:
    return StepContext(TASK, log=StepLog())


def macs_of(content: bytes) -> float:
    """Count the multiplications of a layer's file at 8 x 8 pixels."""
    graph = onnx.load_from_string(content).graph
    stored = {one.name: list(one.dims) for one in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            dims = next(stored[name] for name in node.input if name in stored)
            strides = [a.ints for a in node.attribute if a.name == "strides"]
            pixels = 64 / np.prod(strides[0]) if strides else 1.0
            total += float(np.prod(dims)) * (pixels if "Conv" in node.op_type else 1.0)
    return total


def macs_of_layer(layer: Timed) -> float:
    """Count those of a layer of `Net`, by its module."""
    per_pixel = layer.layer.weight.numel()
    return per_pixel * {"down": 16, "hidden": 1, "out": 1}.get(layer.path, 64)


def quick_export(model: Model) -> bytes:
    """Return, in place of a whole model's file, its MACs and a hash: an export takes a second."""
    macs = counts.macs(model.module, model.example)
    return f"MACS {macs} {weights_hash(model.module)}".encode()


def by_macs(overhead: float = 0.0, share: float = 1.0) -> Clock:
    """Return a clock by which a file takes as long as its MACs.

    Of a whole model's, only a share of the MACs counts, and the overhead comes on top.
    """

    def seconds_of(files: Files, samples: Samples, seconds: float) -> dict[str, np.ndarray]:
        found = {}
        for name, content in files.items():
            if content.startswith(b"MACS"):
                cost = float(content.split()[1]) * share + overhead
            else:
                cost = macs_of(content)
            found[name] = np.array([cost, cost, 1e12]) * 1e-9
        return found

    return seconds_of


def everything(model: Model) -> tuple[Channels, list[Timed], dict[tuple[str, int], int]]:
    channels = sound_groups(model.module, model.items())
    grains = {group.axis: group.grains for group in channels.groups}
    return channels, timed_layers(model, channels), grains


# --- layers and their times -----------------------------------------------------------------------


def test_sizes_follow_from_what_groups_keep() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    by_path = {layer.path: layer for layer in layers}
    assert list(by_path) == ["stem", "wide", "each", "back", "down", "hidden", "out"]
    for path, layer in by_path.items():
        own = model.module.get_submodule(path)
        assert layer.sizes(grains, grains) == layer.whole
        assert layer.alike(layer.whole).weight.shape == own.weight.shape
    halves = {axis: count // 2 for axis, count in grains.items()}
    assert by_path["stem"].sizes(halves, grains) == (3, 16)
    assert by_path["each"].sizes(halves, grains) == (32, 32)
    assert by_path["hidden"].sizes(halves, grains) == (24 * 16, 20)
    assert by_path["out"].sizes(halves, grains) == (20, 10)
    assert {group.path for group in channels.groups} == {"stem", "wide", "down", "hidden"}


def test_files_of_grouped_convolutions_compute_what_the_layers_do() -> None:
    for layer in (nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(8, 12, 3, padding=1, groups=4)):
        x = torch.randn(1, layer.in_channels, 6, 5)
        found = session(layer_file([layer], tuple(x.shape)), threads=1).run({"input": x.numpy()})
        np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=2, stride=2),
        nn.Conv1d(4, 6, 4, padding="same", dilation=2),
        nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 2), groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2),
        nn.ConvTranspose1d(4, 4, 3, stride=2, groups=4),
        nn.ConvTranspose3d(2, 3, 2),
    ],
    ids=str,
)
def test_files_of_other_convolutions_compute_what_the_layers_do(layer: Any) -> None:
    rows = (6, 7, 5)[: layer.weight.ndim - 2]
    x = torch.randn(1, layer.in_channels, *rows)
    found = session(file_of(layer, tuple(x.shape)), threads=1).run({"input": x.numpy()})
    np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    timed = Timed("", layer, rows, 1, Span(1), Span(1), layer.groups == layer.in_channels)
    assert timed.alike(timed.whole).weight.shape == layer.weight.shape


@settings(max_examples=30, deadline=None)
@given(
    a=st.floats(0, 9), b=st.floats(0, 9), c=st.floats(0, 9), reads=st.integers(1, 90),
    makes=st.integers(1, 90),
)  # fmt: skip
def test_interpolation_is_exact_for_a_product(
    a: float, b: float, c: float, reads: int, makes: int
) -> None:
    def cost(r: int, m: int) -> float:
        return a + b * r + c * r * m

    known = {(r, m): cost(r, m) for r, m in product((8, 24, 64), (16, 48))}
    assert interpolated(known, (reads, makes)) == pytest.approx(cost(reads, makes), abs=1e-6)
    line = {(m, m): a + b * m for m in (8, 16, 64)}
    assert interpolated(line, (makes, makes)) == pytest.approx(a + b * makes)
    assert interpolated({}, (8, 8)) == 0.0


def test_measured_layers_predict_the_whole_where_time_is_macs() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    steps = dict.fromkeys(grains, 8)
    known = measured(layers, channels.groups, steps, by_macs(), 1.0)
    times = Times(layers, grains, known)
    assert times.total(grains) == pytest.approx(1e-9 * sum(map(macs_of_layer, layers)))
    halves = {axis: count // 2 for axis, count in grains.items()}
    macs = 64 * (3 * 16 * 9 + 16 * 32 + 32 * 9 + 32 * 16) + 16 * 16 * 24 * 9 + 24 * 16 * 20 + 200
    assert times.total(halves) == pytest.approx(macs * 1e-9)


def test_what_cannot_be_timed_has_no_part() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    known = measured(layers, channels.groups, dict.fromkeys(grains, 8), lambda *_: {}, 1.0)
    times = Times(layers, grains, known)
    assert times.total(dict.fromkeys(grains, 1)) == 0.0


# --- steps ----------------------------------------------------------------------------------------


def in_blocks(block: int) -> Clock:
    """Return a clock for which channels come in blocks: a width takes as long as the next block."""

    def seconds_of(files: Files, samples: Samples, seconds: float) -> dict[str, list[float]]:
        found = {}
        for name, content in files.items():
            graph = onnx.load_from_string(content).graph
            makes, reads, *_ = next(i.dims for i in graph.initializer if "weight" in i.name)
            found[name] = [float(-(-makes // block) * -(-reads // block))] * 3
        return found

    return seconds_of


@pytest.mark.parametrize(("block", "step"), [(16, 16), (8, 8), (4, 4), (1, 4)])
def test_the_step_is_the_block_of_the_kernels(block: int, step: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 96, 3), nn.ReLU(), nn.Conv2d(96, 10, 3),
        nn.Flatten(),
    )  # fmt: skip
    _, layers, _ = everything(model_of(net))
    assert liked_step(layers, in_blocks(block), 1.0) == step


def test_narrow_layers_are_tried_wider_and_narrow_groups_get_half_a_step() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3))
    model = Model(net.eval(), (torch.randn(2, 8),))
    channels, layers, _ = everything(model)
    assert [liked_step(layers, in_blocks(block), 1.0) for block in (1, 8, 16)] == [4, 8, 16]
    assert list(steps_of(channels.groups, 16).values()) == [8, 16]
    assert list(steps_of(channels.groups, 4).values()) == [4, 4]
    assert liked_step(layers, lambda *_: {}, 1.0) is None


def test_measured_steps_need_layers_that_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepFailed, match="round_to='auto' needs layers to be timed"):
        pruned("prune_channels(macs=0.5, round_to='auto')", lambda *_: {}, monkeypatch)


def narrow(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for reads, makes in pairwise((3, *widths)):
        layers += [nn.Conv2d(reads, makes, 3, padding=1), nn.ReLU()]
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return nn.Sequential(*layers, *ends)


def test_a_measured_step_of_macs_is_halved_in_narrow_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(narrow(16, 16, 32))
    text = "prune_channels(macs=0.5, round_to='auto')"
    result, given = pruned(text, in_blocks(16), monkeypatch, model)
    assert [row["step"] for row in given.log.rows if row["kind"] == "widths"] == [16]
    assert [result.module[n].out_channels % 8 for n in (0, 2, 4)] == [0, 0, 0]
    share = counts.macs(result.module, model.example) / counts.macs(model.module, model.example)
    assert 0.4 < share <= 0.5


# --- the knapsack ---------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), target=st.floats(0.3, 0.95))
def test_it_loses_nearly_as_little_as_the_best_of_all_widths(seed: int, target: float) -> None:
    """Against every combination of widths, on a net of four groups."""
    torch.manual_seed(seed)
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.rand(len(parameter)).view(-1, *[1] * (parameter.ndim - 1)))
    model = Model(net.eval(), (torch.randn(2, 3, 8, 8),))
    channels, layers, grains = everything(model)
    groups, steps = channels.groups, dict.fromkeys(grains, 8)
    known = measured(layers, groups, steps, by_macs(), 1.0)
    times = Times(layers, grains, known)
    worth, _ = scores(model, channels, L2(), context())
    options = options_of(groups, worth, steps, dict.fromkeys(grains, 8), "local")
    axes = list(options)
    every = [dict(zip(axes, one, strict=True)) for one in product(*options.values())]
    limit = target * times.total(grains)
    possible = [kept for kept in every if times.total(kept) <= limit]
    found = within(options, times, limit)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert times.total(found) <= limit

    def lost(kept: Mapping[tuple[str, int], int]) -> float:
        return sum(options[axis][count] for axis, count in kept.items())

    assert lost(found) <= 1.15 * min(map(lost, possible)) + 0.02


def test_what_is_lost_grows_without_bound_as_a_group_is_emptied() -> None:
    model = model_of()
    channels, _, grains = everything(model)
    worth, _ = scores(model, channels, L2(), context())
    options = options_of(channels.groups, worth, dict.fromkeys(grains, 1), dict.fromkeys(grains, 1),
                         "local")  # fmt: skip
    for group in channels.groups:
        own = np.sort(worth[group.axis][0])
        for kept, lost in options[group.axis].items():
            share = own[len(own) - kept * len(own) // group.grains :].sum() / own.sum()
            assert lost == pytest.approx(-np.log(share), abs=1e-9)
        assert options[group.axis][group.grains] == 0.0


# --- the technique --------------------------------------------------------------------------------


def pruned(
    text: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, model: Model | None = None
) -> tuple[Model, StepContext]:
    monkeypatch.setattr(timed_files, "seconds_of", clock)
    monkeypatch.setattr(channel_latency, "export", quick_export)
    given = context()
    return run(chain(text), model or model_of(), given), given


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_latency_is_reached_though_layers_tell_only_a_part(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the whole is beside the layers, whose gains count for half in it."""
    text = f"prune_channels(latency=0.7, round_to=1, scope={scope!r})"
    result, given = pruned(text, by_macs(100_000, 0.5), monkeypatch)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] == pytest.approx(0.7, rel=0.02)
    assert not [note for note in given.log.notes if "asked for" in note]
    assert result.module.stem.out_channels == 32, "streams are narrowed last"


class Own(nn.Module):
    """A convolution that only its own code knows, so it cannot be timed by itself."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(makes, reads, 3, 3) / reads)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


def test_convolutions_in_one_dimension_reach_their_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        *(nn.Conv1d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose1d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 10, 3, padding=1)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    )
    torch.manual_seed(0)
    model = Model(net.eval(), (torch.randn(2, 3, 64),))
    text = "prune_channels(latency=0.8, round_to=1)"
    _, given = pruned(text, by_macs(), monkeypatch, model)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] == pytest.approx(0.8, rel=0.02)


def test_what_cannot_be_timed_is_refused_or_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    with pytest.raises(StepFailed, match=r"cannot be aimed at: 1 of 1 .* such as '0' \(Own\)"):
        pruned(
            "prune_channels(latency=0.8, round_to=1, ignored=['2'])",
            *(lambda *args: {k: [1.0] for k in args[0] if k in ("before", "after")}, monkeypatch),
            model_of(nn.Sequential(Own(3, 32), nn.ReLU(), Own(32, 32), nn.ReLU(), *ends)),
        )
    mixed = (Own(3, 32), nn.ReLU(), Own(32, 32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), *ends)
    model = model_of(nn.Sequential(*mixed))
    result, given = pruned("prune_channels(latency=0.8, round_to=1)", by_macs(), monkeypatch, model)
    assert len(result.module[0].weight) == 32 > len(result.module[2].weight)
    assert any("1 of 3 groups of channels have no layer" in note for note in given.log.notes)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] == pytest.approx(0.8, rel=0.02)


def test_a_coarse_step_misses_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "prune_channels(latency=0.9, round_to=32, streams='alike')"
    result, given = pruned(text, by_macs(), monkeypatch)
    widths = [m.out_channels for m in (result.module.stem, result.module.wide)]
    assert all(width % 32 == 0 for width in widths)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert abs(row["reached"] - 0.9) > 0.02 * 0.9
    assert any("asked for 0.90 of the latency, reached" in note for note in given.log.notes)


def test_streams_go_too_where_nothing_else_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = pruned("prune_channels(latency=0.12, round_to=4)", by_macs(), monkeypatch)
    assert result.module.stem.out_channels < 32


def test_a_latency_that_cannot_be_met_is_refused_with_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = by_macs(1_000_000)
    with pytest.raises(StepFailed, match=r"cannot be reached here: .* of the latency stays") as why:
        pruned("prune_channels(latency=0.3, round_to=8)", clock, monkeypatch)
    least = str(why.value).rpartition("Ask for latency=")[2].split()[0]
    _, given = pruned(f"prune_channels(latency={least}, round_to=8)", clock, monkeypatch)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] <= float(least)


def test_what_would_be_slower_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the last, longer timing tells another story than those before."""
    honest = by_macs()

    def fickle(files: Files, samples: Samples, seconds: float) -> dict[str, Sequence[float]]:
        found = dict(honest(files, samples, seconds))
        if {"before", "after"} <= files.keys():
            factor = 1.1 if seconds > 2 * timed_files.WHOLE_SECONDS else 0.5
            found["after"] = [factor * one for one in found["before"]]
        return found

    model = model_of()
    result, given = pruned("prune_channels(latency=0.5, round_to=8)", fickle, monkeypatch, model)
    assert all(map(torch.equal, result.module.parameters(), model.module.parameters()))
    assert any("stays whole, as it would take 1.10 times as long" in n for n in given.log.notes)


def test_a_model_that_is_fast_enough_is_returned_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = pruned("prune_channels(latency=1.0)", lambda *_: {}, monkeypatch)
    assert result.module.wide.out_channels == 64


def test_what_is_fast_enough_already_stays_without_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    small, _ = pruned("prune_channels(latency=0.5, round_to=4)", by_macs(), monkeypatch, model)
    given = replace(context(), origin=model)
    again = run(chain("prune_channels(latency=0.8)"), small, given)
    assert all(map(torch.equal, again.module.parameters(), small.module.parameters()))
    assert not [note for note in given.log.notes if "asked for" in note]


def test_in_rounds_the_fraction_is_that_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "repeat(2, prune_channels(latency=0.5, round_to=2))"
    _, given = pruned(text, by_macs(), monkeypatch)
    reached = [row["reached"] for row in given.log.rows if row["kind"] == "latency"]
    assert reached == pytest.approx([0.75, 0.5], rel=0.02)


def test_where_nothing_can_be_timed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot run the file of the model \(before\).*give macs"):
        pruned("prune_channels(latency=0.5)", lambda *_: {}, monkeypatch)


def test_measured_steps_serve_other_targets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 96, 3), nn.ReLU(), nn.Conv2d(96, 10, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    text = "prune_channels(macs=0.5, round_to='auto')"
    result, given = pruned(text, in_blocks(16), monkeypatch, model_of(net))
    assert [row["step"] for row in given.log.rows if row["kind"] == "widths"] == [16]
    assert result.module[0].out_channels % 16 == result.module[2].out_channels % 16 == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune_channels(latency=0.5, macs=0.5)", "exactly one of macs, params, channels, latency"),
        ("prune_channels(latency=0)", "latency is the fraction"),
        ("prune_channels(macs=0.5, seconds=5)", "leave it out"),
        ("prune_channels(macs=0.5, round_to=0)", "at least 1, or 'auto'"),
        ("prune_channels(macs=0.5, round_to='best')", "at least 1, or 'auto'"),
        ("prune_channels(macs=0.5, round_to=True)", "at least 1, or 'auto'"),
    ],
)
def test_bad_options_are_refused(text: str, words: str) -> None:
    with pytest.raises(IllegalChain, match=words):
        chain(text)


def test_a_load_that_comes_and_goes_falls_out() -> None:
    """Each process is slower than the one before, and each round than the other."""
    model = model_of()
    channels, layers, grains = everything(model)
    steady, calls = by_macs(), [0]

    def loaded(files: Files, samples: Samples, seconds: float) -> dict[str, list[float]]:
        calls[0] += 1
        rounds = np.array([1.0, 5.0, 2.0]) * 3 ** calls[0]
        found = steady(files, samples, seconds)
        return {name: list(values[0] * rounds) for name, values in found.items()}

    steps = dict.fromkeys(grains, 8)
    results = []
    for clock in (steady, loaded):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channel_times, "TOGETHER", 40_000)
            known = measured(layers, channels.groups, steps, clock, 1.0)
        times = Times(layers, grains, known)
        halves = {axis: count // 2 for axis, count in grains.items()}
        results.append(times.total(halves) / times.total(grains))
    assert calls[0] > 3
    assert results[0] == pytest.approx(results[1])


def test_a_file_fed_by_a_number_computes_what_the_layer_does() -> None:
    layer = nn.Conv2d(3, 5, 3)
    content = from_a_number(layer_file([layer], (1, 3, 6, 7)), (1, 3, 6, 7))
    number = np.full((1, 1), 0.7, dtype=np.float32)
    found = session(content, threads=1).run({"number": number})
    expected = layer(torch.full((1, 3, 6, 7), 0.7)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sizes_are_pairs_of_inputs_and_outputs() -> None:
    sizes: Sizes = (3, 8)
    _, layers, _ = everything(model_of())
    made = layers[0].alike(sizes)
    assert layers[0].shape(made) == (1, 3, 8, 8)


def test_files_of_whole_models_are_timed_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock and no file is replaced: what is said to be reached was measured."""
    monkeypatch.setattr(timed_files, "WHOLE_SECONDS", 0.2)
    net = nn.Sequential(
        *(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    )
    model = Model(net.eval(), (torch.randn(2, 3, 24, 24),))
    given = context()
    result = run(chain("prune_channels(latency=0.4, round_to=32, seconds=0.5)"), model, given)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] == row["seconds"]["after"] / row["seconds"]["before"] < 1
    # Which of the two is cut depends on what was measured.
    widths = [result.module[0].out_channels, result.module[2].out_channels]
    assert sum(widths) < 2 * 256
    assert [width % 32 for width in widths] == [0, 0]
