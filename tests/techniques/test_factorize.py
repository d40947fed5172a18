"""`factorize`: targets are met, nothing gets costlier, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from factorized_nets import TASK, context, inputs, layers, model_of, net, share, wrong
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from compress import counts
from compress.compressor import run
from compress.context import StepContext
from compress.errors import IllegalChain, UserError
from compress.techniques import chain

pytestmark = pytest.mark.usefixtures("weights_for_seconds", "prepared_as_they_are")


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("calibration", [64, 256])
def test_macs_target_is_met_from_below(target: float, calibration: int) -> None:
    model, given = model_of(net()), context()
    result = run(chain(f"factorize(macs={target}, calibration={calibration})"), model, given)
    reached = share(result, model)
    assert target - 0.05 <= reached <= target
    # Steps of 8 are coarse in a net of four layers: over 2 % off the target is said.
    said = f"and {reached:.2f} was reached, by the setting within it that loses least"
    notes = [note for note in given.log.notes if f"{said}, with ranks in multiples of 8" in note]
    assert len(notes) == len(given.log.notes) == (reached < 0.98 * target)
    for path, row in layers(given.log).items():
        before = model.module.get_submodule(path)
        after = result.module.get_submodule(path)
        assert ("left_alone" in row) == (type(after) is type(before))
        assert sum(one.numel() for one in after.parameters()) <= sum(
            one.numel() for one in before.parameters()
        )


def test_calibration_lowers_the_error_on_other_items() -> None:
    model = model_of(net())
    errors = {
        text: wrong(run(chain(f"factorize(macs=0.4{text})"), model, context()), model)
        for text in ("", ", calibration=0", ", calibration=0, form='channel'")
    }
    plain_forms, plain = errors[", calibration=0"], errors[", calibration=0, form='channel'"]
    assert errors[""] < 0.5 * plain_forms
    assert plain_forms <= plain


def test_weights_alone_need_no_items() -> None:
    assert chain("factorize(macs=0.5, calibration=0)").needs == frozenset()
    assert chain("factorize(macs=0.5)").needs == {"calibration"}
    with pytest.raises(IllegalChain, match="needs calibration"):
        run(chain("factorize(macs=0.5)"), model_of(net()), StepContext(TASK))


def test_plain_svd_of_the_channel_form_is_truncated_svd() -> None:
    """At the ranks of numpy: the least that keep the energy, in steps of 1."""
    model, given = model_of(net()), context()
    text = "factorize(energy=0.7, form='channel', calibration=0, round_to=1)"
    result = run(chain(text), model, given)
    weight = model.module[5].weight.detach().double().flatten(1).numpy()
    squares = np.linalg.svd(weight, compute_uv=False) ** 2
    rank = int((squares.cumsum() / squares.sum() < 0.7).sum()) + 1
    assert layers(given.log)["5"]["ranks"] == [rank]
    first, second = result.module[5]
    made = second.weight.flatten(1).double() @ first.weight.flatten(1).double()
    expected = squares[rank:].sum() / squares.sum()
    off = np.linalg.norm(weight - made.detach().numpy()) ** 2 / squares.sum()
    assert off == pytest.approx(expected, rel=1e-4)
    assert layers(given.log)["5"]["relative_error"] ** 2 == pytest.approx(expected)


def test_rank_gives_each_layer_the_macs_of_the_channel_form() -> None:
    model, given = model_of(net()), context()
    result = run(chain("factorize(rank=0.25)"), model, given)
    found = layers(given.log)
    # The first layer has the full rank 27: 0.25 of it is one step, 8; 8 * (27 + 32) of 27 * 32.
    assert found["0"]["macs"] <= 8 * (27 + 32) / (27 * 32)
    assert found["5"]["macs"] <= 16 * (576 + 64) / (576 * 64)
    assert found["9"]["macs"] == 8 * (64 + 10) / (64 * 10)
    assert share(result, model) < 0.5


def test_how_near_a_target_is_goes_by_the_target() -> None:
    model, given = model_of(net()), context()
    reached = share(run(chain("factorize(macs=0.12)"), model, given), model)
    assert 0.1 < reached < 0.98 * 0.12, "2 points would be near"
    assert any(f"and {reached:.2f} was reached" in note for note in given.log.notes)


def test_a_model_that_is_small_enough_is_returned_as_it_is() -> None:
    model = model_of(net())
    small = run(chain("factorize(macs=0.4)"), model, context())
    again = run(chain("factorize(macs=0.5)"), small, replace(context(), origin=model))
    assert all(map(torch.equal, small.module.parameters(), again.module.parameters()))


def test_no_layer_collapses_for_a_target_that_is_out_of_reach() -> None:
    model, given = model_of(net()), context()
    result = run(chain("factorize(macs=0.01)"), model, given)
    [note] = given.log.notes
    assert "the target was 0.01 of the MACs, and it cannot be reached" in note
    assert f"{share(result, model):.2f} is what" in note
    rows = layers(given.log).values()
    assert all(row["relative_error"] ** 2 < 0.2 for row in rows if "form" in row)
    assert wrong(result, model) < 0.5


def test_a_target_that_the_other_layers_cannot_give_is_not_laid_to_their_energy() -> None:
    """Groups hold most of the MACs: at 24 of 64 outputs the linear layer gives its utmost."""
    module = nn.Sequential(
        nn.Conv2d(3, 30, 3, padding=1, groups=3),
        nn.Conv2d(30, 30, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(30, 64),
    )
    model, given = model_of(module), context()
    run(chain("factorize(macs=0.7)"), model, given)
    grouped = 64 * 9 * 30 * (1 + 10)
    least = (grouped + 8 * (30 + 64)) / (grouped + 30 * 64)
    [note] = given.log.notes
    assert f"in its cheapest, {least:.2f} would be left" in note
    assert "(left alone are 2 layers: a grouped convolution)" in note
    assert "over 50%" not in note


# --- what is refused -----------------------------------------------------------------------------


def test_uncounted_products_refuse_a_target_of_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "PRODUCTS", counts.PRODUCTS | {"relu"})
    with pytest.raises(UserError, match=r"leave out 3 calls of relu, so macs=0.5 cannot be aimed"):
        run(chain("factorize(macs=0.5)"), model_of(net()), context())


def test_operators_of_other_libraries_refuse_a_target_of_macs() -> None:
    """Their MACs are not known, wherever they are: in what enters, or in the origin."""

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest, self.kernel = net(), nn.Parameter(torch.randn(3, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(deform_conv2d(x, x.new_zeros(len(x), 18, 6, 6), self.kernel))

    foreign, known = model_of(Deformable()), model_of(net())
    words = r"leave out 1 call of torchvision.deform_conv2d, so macs=0.7 cannot be aimed at"
    for model, origin in ((foreign, None), (known, foreign)):
        with pytest.raises(UserError, match=words):
            run(chain("factorize(macs=0.7)"), model, replace(context(), origin=origin))
    assert share(run(chain("factorize(rank=0.25)"), foreign, context()), foreign) < 1


def test_items_that_are_not_finite_are_refused() -> None:
    x = inputs(8)
    x[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        run(chain("factorize(macs=0.5)"), model_of(net()), context(x=x))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("factorize()", "exactly one of rank, energy, macs, latency"),
        ("factorize(macs=0.5, latency=0.5)", "exactly one"),
        ("factorize(latency=0)", "latency is the fraction"),
        ("factorize(macs=0.5, calibration=-1)", "calibration must be a whole number"),
        ("factorize(macs=0.5, form='cp')", "form must be one of best, channel"),
        ("factorize(macs=0.5, round_to=0)", "round_to must be a whole number"),
        ("factorize(macs=0.5, seconds=3)", "only latency"),
        ("factorize(latency=0.5, seconds=0)", "seconds must be positive"),
    ],
)
def test_bad_options_are_refused(text: str, words: str) -> None:
    with pytest.raises(IllegalChain, match=words):
        chain(text)
