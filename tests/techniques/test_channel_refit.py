"""What is left of a cut net is fitted: against least squares by hand, and where nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from pruned_nets import TASK, Net
from torch import Tensor, nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import UserError
from compress.model import Model, forward
from compress.tasks.base import TensorSplit
from compress.techniques import chain, channel_refit

ITEMS = 96
SHAPE = (3, 8, 8)


@pytest.fixture(params=["one by one", "at once"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "at once":
        monkeypatch.setattr(channel_refit, "WORK", 0)


def images(count: int = ITEMS, seed: int = 0) -> Tensor:
    """Return levels (N, 3, 8, 8) of smooth images, prepared as the task does."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator) * 255
    return F.interpolate(coarse, size=SHAPE[1:], mode="bilinear").to(torch.uint8)


def context_of(levels: Tensor | None = None) -> StepContext:
    levels = images() if levels is None else levels
    task = replace(TASK, preprocessing=replace(TASK.preprocessing, size=SHAPE[1:]))
    items = TensorSplit((levels,), torch.zeros(len(levels), dtype=torch.int64))
    return StepContext(task, calibration=items, log=StepLog())


def prepared(levels: Tensor, given: StepContext) -> Tensor:
    (inputs,) = given.task.prepare((levels,), torch.device("cpu"))
    return inputs


def by_layer(given: StepContext) -> dict[str, dict[str, Any]]:
    refits = [row for row in given.log.rows if row["kind"] == "refit" and "layer" in row]
    return {row["layer"]: row for row in refits}


def two_layers(bias: bool = True) -> Net:
    """Return a net of a convolution, ReLU, and a convolution that reads it."""

    def add(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(m.second(F.relu(m.first(x))).mean((2, 3)))

    layers = {
        "first": nn.Conv2d(3, 12, 3, padding=1, bias=bias),
        "second": nn.Conv2d(12, 6, 3, padding=1, bias=bias),
        "out": nn.Linear(6, 10),
    }
    return Net(add, **layers)


def model_of(net: nn.Module) -> Model:
    return Model(net.eval(), (torch.randn(2, *SHAPE),))


HALF = "prune_channels(channels=0.5, round_to=1, ignored=['second'])"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("_way")
def test_the_weights_are_those_of_least_squares(bias: bool) -> None:
    """Where each position is a row: numpy's least squares over all of them, to within the ridge."""
    torch.manual_seed(0)
    model, given = model_of(two_layers(bias)), context_of()
    plain = run(replace(chain(HALF).steps[0], calibration=0), model, given).module  # type: ignore[type-var]
    ours = run(chain(HALF), model, given).module
    assert torch.equal(ours.first.weight, plain.first.weight), "nothing before it was cut"
    x = prepared(images(), given)
    with torch.no_grad():
        wanted = model.module.second(F.relu(model.module.first(x)))
        hidden = F.relu(plain.first(x))
    rows = F.unfold(hidden, 3, padding=1).transpose(1, 2).reshape(-1, 6 * 9).double()
    goals = wanted.flatten(2).transpose(1, 2).reshape(-1, 6).double()
    if bias:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    best = torch.linalg.lstsq(rows, goals).solution

    def error(layer: nn.Conv2d) -> float:
        with torch.no_grad():
            return float((layer(hidden) - wanted).double().square().mean())

    least = float((rows @ best - goals).square().mean())
    assert least <= error(ours.second) < 1.02 * least + 1e-4 * float(goals.var())
    assert error(ours.second) < 0.5 * error(plain.second)


@pytest.mark.usefixtures("_way")
def test_what_others_can_say_is_not_lost() -> None:
    """Channels that are multiples of others: what reads them takes it from these."""
    torch.manual_seed(0)
    net = two_layers()
    with torch.no_grad():
        net.first.weight[6:] = 0.5 * net.first.weight[:6]
        net.first.bias[6:] = 0.5 * net.first.bias[:6]
    model, given = model_of(net), context_of()
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, given).module
    assert ours.first.out_channels == 6
    x = prepared(images(seed=1), given)
    expected = forward(model.module, (x,))
    off = [float((forward(one, (x,)) - expected).abs().max()) for one in (ours, plain)]
    assert off[0] < 0.02 * off[1]


def test_later_layers_take_back_what_earlier_ones_lose() -> None:
    """The outputs of a deep net come nearer than if each layer is fitted by itself."""
    data = small_digits()
    model, given = fresh_model(data, "resnet20"), make_context(data)
    off = []
    for work in (1e15, 0.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channel_refit, "WORK", work)
            log = StepLog()
            run(chain("prune_channels(macs=0.6)"), model, replace(given, log=log))
        [whole] = [row for row in log.rows if row["kind"] == "refit" and "layer" not in row]
        assert whole["error"] < whole["error_before"]
        off.append(whole["error"])
    assert off[0] < off[1]


def test_every_layer_has_a_row_with_its_error_or_why_it_stays() -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    run(chain(HALF), model, given)
    rows = {
        row["layer"]: row for row in given.log.rows if row["kind"] == "refit" and "layer" in row
    }
    assert rows["first"]["left_alone"] == channel_refit.UNCHANGED
    assert rows["second"]["error"] < rows["second"]["error_before"]
    assert rows["out"]["error"] <= rows["out"]["error_before"]


def test_zeros_of_pruned_weights_stay_and_what_is_frozen_stays_frozen() -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    model.module.out.requires_grad_(False)
    sparse = run(chain("prune_weights(sparsity=0.5, scope='layer')"), model, given)
    ours = run(chain(HALF), sparse, given)
    assert "second.weight" in ours.sparse
    assert int((ours.module.second.weight == 0).sum()) > 0
    assert by_layer(given)["second"]["left_alone"] == channel_refit.SPARSE
    assert [p.requires_grad for p in ours.module.out.parameters()] == [False, False]


def test_layers_that_would_bring_the_outputs_no_nearer_keep_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    monkeypatch.setattr(channel_refit, "_errors", lambda *_: [1.0, 2.0])
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, given).module
    assert torch.equal(ours.second.weight, plain.second.weight)
    assert any("no nearer" in note for note in given.log.notes)


def test_items_that_are_all_black_say_nothing() -> None:
    torch.manual_seed(0)
    net = two_layers()
    with torch.no_grad():
        net.first.bias.fill_(-100)
    model, given = model_of(net), context_of(torch.zeros(20, *SHAPE, dtype=torch.uint8))
    ours = run(chain(HALF), model, given).module
    assert all(parameter.isfinite().all() for parameter in ours.parameters())


def test_values_that_are_not_finite_are_refused_with_the_layer() -> None:
    torch.manual_seed(0)
    net = two_layers()

    def poisoned(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(m.second(F.relu(m.first(x)) / (x.mean() + 1).clamp(min=0)).mean((2, 3)))

    net.give = poisoned
    black = torch.zeros(20, *SHAPE, dtype=torch.uint8)
    given = context_of(black)
    given = replace(
        given,
        task=replace(
            given.task,
            preprocessing=replace(given.task.preprocessing, mean=(1.0,) * 3, std=(1.0,) * 3),
        ),
    )
    with pytest.raises(UserError, match=r"layer second is given values .* calibration=0"):
        run(chain(HALF), model_of(net), given)
