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
from compress.errors import IllegalChain, UserError
from compress.lowrank import in_turn
from compress.lowrank.moments import not_finite
from compress.model import Model, forward
from compress.tasks.base import TensorSplit
from compress.techniques import chain, channel_refit

ITEMS = 96
SHAPE = (3, 8, 8)


@pytest.fixture(params=["one by one", "at once"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "at once":
        monkeypatch.setattr(in_turn, "ROOM", 0)


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
    x = x[ITEMS // 8 :]  # the others judge the fit
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
    for room in (in_turn.ROOM, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(in_turn, "ROOM", room)
            log = StepLog()
            run(chain("prune_channels(macs=0.6)"), model, replace(given, log=log))
        [whole] = [row for row in log.rows if row["kind"] == "refit" and "layer" not in row]
        assert whole["error"] < whole["error_before"]
        off.append(whole["error"])
    assert off[0] < off[1]


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_run_several_times_are_refitted_before_those_in_turn(seed: int) -> None:
    """So that what comes in turn takes back what they lose; all at once is no better."""
    torch.manual_seed(seed)

    def looped(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for _ in range(2):
            x = x + m.back(F.relu(m.inner(x)))
        return m.out(F.relu(m.head(x)).mean((2, 3)))

    layers = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "inner": nn.Conv2d(8, 16, 3, padding=1),
        "back": nn.Conv2d(16, 8, 3, padding=1),
        "head": nn.Conv2d(8, 16, 3, padding=1),
        "out": nn.Linear(16, 10),
    }
    model, errors = model_of(Net(looped, **layers)), []
    for room in (in_turn.ROOM, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(in_turn, "ROOM", room)
            given = context_of()
            run(chain("prune_channels(channels=0.5, round_to=1)"), model, given)
        assert by_layer(given)["back"]["error"] < by_layer(given)["back"]["error_before"]
        [whole] = [r for r in given.log.rows if r["kind"] == "refit" and "layer" not in r]
        errors.append((whole["error"], whole["error_before"]))
    assert errors[0][0] < 0.5 * errors[0][1]
    assert errors[0][0] < 1.05 * errors[1][0]


def test_a_net_that_is_not_finite_once_it_is_cut_keeps_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The items are not at fault, whose values the whole net takes well."""

    def refused(*_: object) -> None:
        raise not_finite("second")

    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    monkeypatch.setattr(in_turn.Wanted, "fit", refused)
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, context_of()).module
    assert torch.equal(ours.second.weight, plain.second.weight)
    for path in ("second", "out"):
        assert by_layer(given)[path]["left_alone"] == "layer second is not given finite values"


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


def test_zeros_of_pruned_weights_and_frozen_layers_stay() -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    sparse = run(chain("prune_weights(sparsity=0.5, scope='layer')"), model, given)
    ours = run(chain(HALF), sparse, given)
    assert "second.weight" in ours.sparse
    assert int((ours.module.second.weight == 0).sum()) > 0
    assert by_layer(given)["second"]["left_alone"] == channel_refit.SPARSE
    model.module.second.weight.requires_grad_(False)
    ours = run(chain(HALF), model, replace(given, log=(log := StepLog())))
    assert by_layer(replace(given, log=log))["second"]["left_alone"] == channel_refit.FROZEN
    assert not ours.module.second.weight.requires_grad


def test_layers_that_would_bring_the_outputs_no_nearer_keep_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of()
    monkeypatch.setattr(channel_refit, "output_errors", lambda *_: [1.0, 2.0])
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, given).module
    assert torch.equal(ours.second.weight, plain.second.weight)
    assert any("no nearer on 12 items that the fit did not see" in n for n in given.log.notes)


@pytest.mark.usefixtures("_way")
def test_few_rows_to_an_input_are_not_fitted_by_heart() -> None:
    """One row an item, as many inputs as items, noise: on other items it is no worse."""
    torch.manual_seed(0)

    def mlp(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(F.relu(m.first(x.flatten(1))))

    net = Net(mlp, first=nn.Linear(192, 192), out=nn.Linear(192, 10))
    noise = torch.randint(0, 256, (192, *SHAPE), dtype=torch.uint8)
    model, given = model_of(net), context_of(noise[:96])
    step = "prune_channels(channels=0.5, round_to=1)"
    x = prepared(noise[96:], given)
    expected = forward(model.module, (x,))

    def error(text: str) -> float:
        outputs = forward(run(chain(text), model, given).module, (x,))
        return float((outputs - expected).square().mean())

    assert error(step) < error(step.replace(")", ", calibration=0)"))


def test_less_than_32_items_are_too_few() -> None:
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of(images(31))
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, given).module
    assert torch.equal(ours.second.weight, plain.second.weight)
    assert any("31 calibration items, and 32 are the least" in note for note in given.log.notes)


def test_constant_inputs_move_biases_alone() -> None:
    """All items are one: what is fitted is a mean, and no noise of rounding."""
    torch.manual_seed(0)
    model, given = model_of(two_layers()), context_of(images(1).repeat(33, 1, 1, 1))
    ours = run(chain(HALF), model, given).module
    plain = run(chain(HALF.replace(")", ", calibration=0)")), model, given).module
    x = prepared(images(1), given)
    expected = forward(model.module, (x,))
    off = [float((forward(one, (x,)) - expected).abs().max()) for one in (ours, plain)]
    assert off[0] < 0.1 * off[1]
    assert ours.out.weight.detach().abs().max() < 1.2 * plain.out.weight.detach().abs().max()


def test_rows_among_which_channels_were_cut_are_left_alone() -> None:
    """A Linear over positions has a row for each channel: half of them are gone."""
    torch.manual_seed(0)

    def mixed(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.mix(F.relu(m.first(x)).flatten(2))).transpose(1, 2)
        return m.out(F.relu(m.last(x)).mean(1))

    layers = {"first": nn.Conv2d(3, 24, 2, 2), "mix": nn.Linear(16, 16, bias=False)}
    layers |= {"last": nn.Linear(24, 24), "out": nn.Linear(24, 10)}
    model, given = model_of(Net(mixed, **layers)), context_of()
    run(chain("prune_channels(channels=0.5, round_to=1)"), model, given)
    assert by_layer(given)["mix"]["left_alone"] == channel_refit.AMONG_ROWS
    assert by_layer(given)["out"]["error"] < by_layer(given)["out"]["error_before"]


def test_what_is_read_by_a_layer_that_is_not_refitted_is_known_to_be_cut() -> None:
    torch.manual_seed(0)

    def padded(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(F.relu(m.second(F.relu(m.first(x)))).mean((2, 3)))

    layers = {
        "first": nn.Conv2d(3, 12, 3, padding=1),
        "second": nn.Conv2d(12, 6, 3, padding=1, padding_mode="reflect"),
        "out": nn.Linear(6, 10),
    }
    model, given = model_of(Net(padded, **layers)), context_of()
    run(chain(HALF), model, given)
    rows = by_layer(given)
    assert rows["first"]["left_alone"] == channel_refit.UNCHANGED
    assert rows["second"]["left_alone"] == "a convolution with reflect padding"
    assert rows["out"]["error"] < rows["out"]["error_before"]


def test_without_items_it_says_how_to_do_without() -> None:
    with pytest.raises(IllegalChain, match="It can do without: give calibration=0"):
        run(chain(HALF), model_of(two_layers()), StepContext(TASK))
    with pytest.raises(IllegalChain, match=r"the context has none$"):
        run(chain("quantize()"), model_of(two_layers()), StepContext(TASK))


def test_values_that_are_not_finite_are_refused_with_the_layer() -> None:
    torch.manual_seed(0)
    net = two_layers()

    def poisoned(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(m.second(F.relu(m.first(x)) / (x.mean() + 1).clamp(min=0)).mean((2, 3)))

    net.give = poisoned
    black = torch.zeros(40, *SHAPE, dtype=torch.uint8)
    given = context_of(black)
    given = replace(
        given,
        task=replace(
            given.task,
            preprocessing=replace(given.task.preprocessing, mean=(1.0,) * 3, std=(1.0,) * 3),
        ),
    )
    with pytest.raises(UserError, match=r"layer second .*not finite.* calibration=0"):
        run(chain(HALF), model_of(net), given)
