"""`factorize`: which layers become factors, which stay whole, and what the log says of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factorized_nets import context, inputs, layers, model_of, net, share, wrong
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.lowrank.unpack import Flat
from compress.model import Blueprint, forward, load, save
from compress.techniques import chain

pytestmark = pytest.mark.usefixtures("weights_for_seconds", "prepared_as_they_are")


def test_a_layer_that_would_not_get_cheaper_is_left_alone_and_the_step_log_says_so() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, 2))
    given = context()
    result = run(chain("factorize(rank=0.9)"), model_of(module), given)
    assert isinstance(result.module[1], nn.Linear)
    reasons = [row["left_alone"] for row in layers(given.log).values()]
    assert reasons == ["rank 56 would not be cheaper", "rank 2 would not be cheaper"]
    assert given.log.notes == ["factorize: no layer would get cheaper, all left alone"]


def test_rebuilt_layers_drop_their_mask() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, 1))
    model = replace(model_of(module), sparse=frozenset({"1.weight", "2.weight"}))
    result = run(chain("factorize(rank=0.2)"), model, context())
    assert result.sparse == {"2.weight"}


def test_zeros_that_are_lost_are_said() -> None:
    model, given = model_of(net()), context()
    sparse = run(chain("prune_weights(sparsity=0.8)"), model, given)
    result = run(chain("factorize(rank=0.25)"), sparse, given)
    rebuilt = [path for path, row in layers(given.log).items() if "form" in row]
    zeros = sum(int((sparse.module.get_parameter(f"{p}.weight") == 0).sum()) for p in rebuilt)
    [note] = given.log.notes
    assert f"{len(rebuilt)} layers with pruned weights became factors" in note
    assert f"{zeros:,} zeros are lost" in note
    assert not any(name.removesuffix(".weight") in rebuilt for name in result.sparse)


def test_what_holds_no_layer_to_factorize_stays_whole() -> None:
    convolution = nn.Conv1d(3, 63, 3, groups=3)
    module = nn.Sequential(nn.Flatten(2), convolution, nn.Flatten(), nn.Linear(3906, 2))
    model, given = model_of(module), context()
    result = run(chain("factorize(macs=0.7)"), model, given)
    assert share(result, model) == 1
    assert any("cannot be reached" in note for note in given.log.notes)
    assert layers(given.log)["1"]["left_alone"] == "a grouped convolution"


def test_a_zero_layer_costs_no_other_layer_anything() -> None:
    module = net()
    nn.init.zeros_(module[5].weight)
    model, given = model_of(module), context()
    result = run(chain("factorize(macs=0.5)"), model, given)
    assert share(result, model) <= 0.5
    assert layers(given.log)["5"]["relative_error"] == 0
    assert all("left_alone" in row for path, row in layers(given.log).items() if path != "5")
    assert result.module[5](torch.ones(1, 64, 4, 4)).shape == (1, 64, 4, 4)


def test_tied_layers_stay_tied_and_nothing_grows() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(192, 64), nn.Linear(64, 192)
            self.third, self.out = nn.Linear(192, 64), nn.Linear(64, 10)
            self.third.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(F.relu(self.first(x.flatten(1))))
            return self.out(F.relu(self.third(F.relu(x))))

    model, given = model_of(Tied()), context()
    result = run(chain("factorize(macs=0.8)"), model, given)
    assert result.module.third.weight is result.module.first.weight
    before, after = (counts.count(one.module, model.example) for one in (model, result))
    assert after.params < before.params
    assert 0.76 <= after.macs / before.macs <= 0.8


def test_a_layer_that_is_called_twice_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.same = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
            self.again, self.out = self.same, nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.again(F.relu(self.same(F.relu(self.stem(x))))))
            return self.out(x.mean((2, 3)))

    model = model_of(Twice())
    result = run(chain("factorize(macs=0.5)"), model, context())
    assert result.module.same is result.module.again
    assert isinstance(result.module.same, nn.Sequential)
    assert share(result, model) <= 0.5


def test_recurrent_layers_count_and_are_not_touched() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x.flatten(2).reshape(len(x), 8, 24))[0][:, -1])

    model, given = model_of(Recurrent()), context()
    result = run(chain("factorize(macs=0.7)"), model, given)
    assert share(result, model) == 1
    assert any("cannot be reached" in note for note in given.log.notes)


# --- convolutions along one axis -----------------------------------------------------------------


def sequences() -> nn.Module:
    """Return a net of rows of pixels, all of whose convolutions go along them."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, stride=2, padding="valid", bias=False),
        nn.ReLU(),
        nn.Conv1d(64, 64, 3, padding="same", dilation=2),
        nn.ReLU(),
        nn.Conv1d(64, 48, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Conv1d):
                u, s, vh = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
                decaying = 3 * s[0] * torch.exp(-4 * torch.arange(len(s)) / len(s))
                layer.weight.copy_((u * decaying @ vh).view(layer.weight.shape))
    return module


@pytest.mark.parametrize("form", ["best", "channel", "reduce", "tucker"])
def test_convolutions_along_one_axis_are_factorized(form: str) -> None:
    """The factors are Conv1d, and together they are what the log says of them."""
    model, given = model_of(sequences()), context()
    result = run(chain(f"factorize(macs=0.5, form='{form}', calibration=0)"), model, given)
    assert share(result, model) < 0.9
    assert not any(isinstance(part, (nn.Conv2d, Flat)) for part in result.module.modules())
    rows = layers(given.log)
    assert {"1", "3", "5", "7", "10"} == rows.keys()
    factorized = {path for path, row in rows.items() if "form" in row}
    assert factorized & {"3", "5", "7"}
    for path in factorized - {"10"}:
        layer, factors = model.module.get_submodule(path), result.module.get_submodule(path)
        # The answer to one value of each channel, at every place of the kernel.
        length = layer.kernel_size[0]
        images = torch.eye(layer.in_channels * length).view(-1, layer.in_channels, length)
        made = images
        for factor in factors:
            made = F.conv1d(made, factor.weight)
        expected = F.conv1d(images, layer.weight)
        off = ((made - expected).norm() / expected.norm()).item()
        assert off == pytest.approx(rows[path]["relative_error"], rel=1e-3, abs=1e-5)


def test_factors_along_one_axis_are_saved_and_trained(tmp_path: Path) -> None:
    model, given = model_of(sequences()), context()
    result = run(chain("factorize(rank=0.9)"), model, given)
    assert type(result.module[1]) is nn.Conv1d
    half = run(chain("factorize(macs=0.5)"), model, context())
    assert share(half, model) <= 0.5
    assert wrong(half, model) < 0.3
    assert [type(layer) for layer in half.module[5]] == [nn.Conv1d] * len(half.module[5])
    saved = replace(half, blueprint=Blueprint("sequences"))
    save(saved, tmp_path, lambda _: sequences())
    again = load(tmp_path, lambda _: sequences())
    assert torch.equal(forward(again.module, (inputs(2),)), forward(half.module, (inputs(2),)))
    trained = half.module.train()
    trained(inputs(2)).sum().backward()
    assert all(one.grad is not None for one in trained.parameters())
