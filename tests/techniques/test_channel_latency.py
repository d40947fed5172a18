"""Widths within a time: what the knapsack takes, and how the whole corrects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_nets import cut_alone
from timed_nets import Net, Samples, by_macs, context, everything, in_blocks, model_of
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext
from compress.errors import IllegalChain, StepFailed, UserError
from compress.lowrank.latency import Clock, Files
from compress.model import Model, weights_hash
from compress.techniques import chain, channel_latency, timed_files
from compress.techniques.channel_budget import options_of, within
from compress.techniques.channel_scores import scores
from compress.techniques.channel_times import Times, measured
from compress.techniques.criteria import L2


def quick_export(model: Model) -> bytes:
    """Return, in place of a whole model's file, its MACs and a hash: an export takes a second."""
    macs = counts.macs(model.module, model.example)
    return f"MACS {macs} {weights_hash(model.module)}".encode()


def pruned(
    text: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, model: Model | None = None
) -> tuple[Model, StepContext]:
    monkeypatch.setattr(timed_files, "seconds_of", clock)
    monkeypatch.setattr(channel_latency, "export", quick_export)
    given = context()
    return run(cut_alone(text), model or model_of(), given), given


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


# --- a target of latency --------------------------------------------------------------------------


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


class Own(nn.Module):
    """A convolution that only its own code knows, so it cannot be timed by itself."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(makes, reads, 3, 3) / reads)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


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


class InEights(nn.Module):
    """A convolution whose code runs at 32 channels, but not at 8, 16 or 24."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.shape[1] in (8, 16, 24):
            raise RuntimeError("no kernel for these channels")
        return F.relu(x)


def test_a_group_that_fails_at_the_widths_that_are_timed_stays_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), InEights(), nn.Conv2d(32, 64, 3))
    ends = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = model_of(nn.Sequential(*layers, *ends))
    result, given = pruned("prune_channels(latency=0.6, round_to=8)", by_macs(), monkeypatch, model)
    assert result.module[2].conv.out_channels == 32
    assert result.module[3].out_channels < 64
    left = {row["layer"]: row["left_alone"] for row in given.log.rows if "left_alone" in row}
    assert "no kernel for these channels" in left["2.conv"]
    assert [row["kind"] for row in given.log.rows].count("latency") == 1


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
    again = run(cut_alone("prune_channels(latency=0.8)"), small, given)
    assert all(map(torch.equal, again.module.parameters(), small.module.parameters()))
    assert not [note for note in given.log.notes if "asked for" in note]


def test_in_rounds_the_fraction_is_that_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "repeat(2, prune_channels(latency=0.5, round_to=2, calibration=0))"
    _, given = pruned(text, by_macs(), monkeypatch)
    reached = [row["reached"] for row in given.log.rows if row["kind"] == "latency"]
    assert reached == pytest.approx([0.75, 0.5], rel=0.02)


def test_where_nothing_can_be_timed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot run the file of the model \(before\).*give macs"):
        pruned("prune_channels(latency=0.5)", lambda *_: {}, monkeypatch)


def test_files_of_whole_models_are_timed_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock and no file is replaced: what is said to be reached was measured."""
    monkeypatch.setattr(timed_files, "WHOLE_SECONDS", 0.2)
    net = nn.Sequential(
        *(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    )
    model = Model(net.eval(), (torch.randn(2, 3, 24, 24),))
    given = context()
    result = run(cut_alone("prune_channels(latency=0.4, round_to=32, seconds=0.5)"), model, given)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert row["reached"] == row["seconds"]["after"] / row["seconds"]["before"] < 1
    # Which of the two is cut depends on what was measured.
    widths = [result.module[0].out_channels, result.module[2].out_channels]
    assert sum(widths) < 2 * 256
    assert [width % 32 for width in widths] == [0, 0]


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


# --- measured steps -------------------------------------------------------------------------------


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


def test_measured_steps_serve_other_targets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 96, 3), nn.ReLU(), nn.Conv2d(96, 10, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    text = "prune_channels(macs=0.5, round_to='auto')"
    result, given = pruned(text, in_blocks(16), monkeypatch, model_of(net))
    assert [row["step"] for row in given.log.rows if row["kind"] == "widths"] == [16]
    assert result.module[0].out_channels % 16 == result.module[2].out_channels % 16 == 0
