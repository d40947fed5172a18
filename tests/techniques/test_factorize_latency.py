"""`factorize` by measured seconds: what is timed, what is slower, and what is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from factorized_nets import clock, context, layers, model_of, net, share
from torch import nn

from compress.compressor import run
from compress.errors import UserError
from compress.lowrank import latency
from compress.tasks.base import Tensors
from compress.techniques import chain, timed_files
from compress.timing.launch import WorkerFailed

pytestmark = pytest.mark.usefixtures("weights_for_seconds", "prepared_as_they_are")


def test_latency_is_met_by_measured_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(timed_files, "seconds_of", clock(500, asked))
    monkeypatch.setattr(latency, "ADJUSTMENTS", 1)
    model, given = model_of(net()), context()
    result = run(chain("factorize(latency=0.7, seconds=5)"), model, given)
    [row] = [row for row in given.log.rows if row["kind"] == "latency"]
    assert 0.6 <= row["reached"] <= 0.72
    assert len(given.log.notes) == (row["reached"] < 0.98 * 0.7)
    assert isinstance(result.module[5], nn.Sequential)
    assert type(result.module[9]) is nn.Linear


def test_where_more_layers_take_longer_all_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_files, "seconds_of", clock(1e6, []))
    model, given = model_of(net()), context()
    result = run(chain("factorize(latency=0.7)"), model, given)
    assert share(result, model) == 1
    assert given.log.notes == ["factorize: no layer would get cheaper, all left alone"]
    reason = "no form is a tenth faster here than the layer itself"
    assert {row["left_alone"] for path, row in layers(given.log).items() if path != "9"} == {reason}


def test_a_whole_that_is_slower_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single layers seem to gain, and the whole does not."""
    single, whole = clock(0, []), clock(1e6, [])

    def seconds_of(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        return (whole if "before" in files else single)(files, samples, seconds)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(timed_files, "seconds_of", seconds_of)
    model, given = model_of(net()), context()
    result = run(chain("factorize(latency=0.7)"), model, given)
    assert share(result, model) == 1
    assert any("not shown to be faster" in note for note in given.log.notes)


@pytest.mark.parametrize("text", ["macs=0.5", "rank=0.25", "energy=0.9"])
def test_a_whole_that_is_shown_to_be_slower_stays_as_it_was(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_files, "seconds_of", clock(1e6, []))
    model, given = model_of(net()), context()
    result = run(chain(f"factorize({text})"), model, given)
    assert all(map(torch.equal, model.module.parameters(), result.module.parameters()))
    assert any("the model stays whole, as it would take" in note for note in given.log.notes)
    assert not any("no layer would get cheaper" in note for note in given.log.notes)


def test_only_the_layers_that_get_slower_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a file with factors of 3 channels takes long, whatever else is in it."""

    def seconds_of(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        found = {}
        for name, content in files.items():
            weights = list(onnx.load_from_string(content).graph.initializer)
            factor = any(len(one.dims) == 4 and one.dims[:2] in ([8, 3],) for one in weights)
            found[name] = np.full(3, sum(len(one.raw_data) for one in weights) + 1e9 * factor)
        return found

    monkeypatch.setattr(timed_files, "seconds_of", seconds_of)
    model, given = model_of(net()), context()
    result = run(chain("factorize(rank=0.25, form='channel')"), model, given)
    assert type(result.module[0]) is nn.Conv2d
    assert isinstance(result.module[5], nn.Sequential)
    assert layers(given.log)["0"]["left_alone"] == "its factors take longer here than the layer"
    [note] = given.log.notes
    assert "1 of 4 layers stay whole after all" in note
    assert f"{share(result, model):.2f} of the MACs are left" in note


def test_small_models_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(timed_files, "LEAST_MACS", 5e6)
    monkeypatch.setattr(timed_files, "seconds_of", lambda *args: asked.append(args))
    run(chain("factorize(rank=0.3)"), model_of(net()), context())
    assert not asked


def test_what_is_slower_by_no_more_than_noise_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rounds one is slower, half the other: on the median 1.2 times as slow."""

    def seconds_of(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        rounds = np.array([0.8, 1.6] * 5)
        return {name: rounds if name == "after" else np.ones(10) for name in files}

    monkeypatch.setattr(timed_files, "seconds_of", seconds_of)
    model, given = model_of(net()), context()
    assert share(run(chain("factorize(rank=0.25)"), model, given), model) < 0.5
    assert not given.log.notes


def test_noise_alone_does_not_make_a_model_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single layers gain, and the whole is 1 % faster by its median, in six of ten rounds."""
    single = clock(0, [])

    def seconds_of(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        if "after" not in files:
            return single(files, samples, seconds)  # type: ignore[operator, no-any-return]
        rounds = np.array([0.99] * 6 + [1.1] * 4)
        return {name: rounds if name == "after" else np.ones(10) for name in files}

    monkeypatch.setattr(timed_files, "seconds_of", seconds_of)
    model, given = model_of(net()), context()
    assert share(run(chain("factorize(latency=0.7)"), model, given), model) == 1
    assert any("not shown to be faster" in note for note in given.log.notes)


@pytest.mark.parametrize("count", range(6, 40))
def test_the_interval_of_a_slowdown_holds_the_median(count: int) -> None:
    """Of uniform ratios, whose median is 1.5: in at least 95 % of draws, less noise."""
    draws = np.random.default_rng(count).uniform(1, 2, (4000, count))
    found = [timed_files.slowdown(draw, np.ones(count)) for draw in draws]
    held = np.mean([one.low <= 1.5 <= one.high for one in found])
    assert held >= 0.94


def test_where_nothing_can_be_timed_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensors:
        raise WorkerFailed("it ended")

    monkeypatch.setattr(timed_files, "seconds_of", broken)
    model, given = model_of(net()), context()
    assert share(run(chain("factorize(macs=0.5)"), model, given), model) <= 0.5
    assert any("whether the model is faster is not known" in note for note in given.log.notes)


def test_without_a_clock_latency_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensors:
        raise WorkerFailed("it ended")

    monkeypatch.setattr(timed_files, "seconds_of", broken)
    with pytest.raises(UserError, match="nothing could be timed here: it ended"):
        run(chain("factorize(latency=0.7)"), model_of(net()), context())


def test_a_latency_that_is_met_already_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_of(files: Mapping[str, bytes], *_: object) -> dict[str, np.ndarray]:
        return {name: np.full(10, 1.0 if name == "before" else 4.0) for name in files}

    monkeypatch.setattr(timed_files, "seconds_of", seconds_of)
    whole = net()
    with torch.no_grad():
        whole[0].weight.mul_(2)
    model, given = model_of(net()), replace(context(), origin=model_of(whole))
    assert share(run(chain("factorize(latency=0.7)"), model, given), model) == 1
    assert given.log.notes == ["factorize: the model is as fast already, all left alone"]


def test_latency_of_one_changes_nothing() -> None:
    model = model_of(net())
    result = run(chain("factorize(latency=1.0)"), model, context())
    assert all(map(torch.equal, model.module.parameters(), result.module.parameters()))
