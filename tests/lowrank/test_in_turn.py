"""One pass fits all layers, each to what those before it give by then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.lowrank import in_turn
from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer
from compress.lowrank.in_turn import Wanted, first_items, items_with_room
from compress.model import copied, forward


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Flatten(2), nn.Linear(16, 5), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 6)).eval()


def items(count: int = 20) -> tuple[Tensor]:
    return (torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


EVERY = {"0": None, "2": None, "5": None}


@pytest.mark.parametrize("rows", [10_000, 60])
def test_inputs_and_wanted_outputs_belong_together(rows: int) -> None:
    """Nothing has changed: y = W x + b for every row, so cross moments are W S."""
    module, seen = net(), list[str]()

    def fit(path: str, layer: Layer, known: Inputs) -> nn.Module:
        seen.append(path)
        weight, bias = layer.weight.detach().double().flatten(1), layer.bias.detach().double()
        assert known.moments is not None
        assert known.wanted is not None
        torch.testing.assert_close(known.wanted, weight @ known.moments, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            known.wanted_mean, weight @ known.mean + bias, rtol=1e-4, atol=1e-5
        )
        energy = float((weight @ known.moments @ weight.T).trace())
        assert known.energy == pytest.approx(energy, rel=1e-4)
        return layer

    Wanted(module, EVERY, items(), lambda layer: rows).fit(copied(module), EVERY, fit)
    assert seen == ["0", "2", "5"]


def test_later_layers_are_given_what_fitted_ones_give() -> None:
    """The first becomes another; the second sees that, and is wanted to give what it gave."""
    module = net()
    other = nn.Conv2d(3, 4, 3, padding=1, stride=2).eval()
    with torch.no_grad():
        rows = other(*items()).flatten(2).reshape(-1, 16).double()
        goals = module[2](module[0](*items()).flatten(2)).reshape(-1, 5)[:, [0, 3]].double()

    def fit(path: str, layer: Layer, known: Inputs) -> nn.Module:
        if path == "0":
            return other
        torch.testing.assert_close(known.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        off, wanted_off = rows - rows.mean(0), goals - goals.mean(0)
        crossed = wanted_off.T @ off / len(rows)
        assert known.wanted is not None
        torch.testing.assert_close(known.wanted, crossed, rtol=1e-4, atol=1e-5)
        return layer

    some = {"0": None, "2": torch.tensor([0, 3])}
    narrower = copied(module)
    narrower[2] = nn.Linear(16, 2)
    narrower[5] = nn.Linear(8, 6)
    Wanted(module, EVERY, items()).fit(narrower, some, fit)


def test_layers_are_as_they_were_afterwards_and_after_an_error() -> None:
    module = net()

    def fails(path: str, layer: Layer, known: Inputs) -> nn.Module:
        raise ArithmeticError(path)

    trial = copied(module)
    with pytest.raises(ArithmeticError, match="0"):
        Wanted(module, EVERY, items()).fit(trial, EVERY, fails)
    assert not any("forward" in vars(one) for net in (module, trial) for one in net.modules())


class First(nn.Module):
    """Sequences first: rows of some items are not the first of all."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.inner, self.out = flat, nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2).transpose(0, 1)
        y = self.inner(x.flatten(0, 1)) if self.flat else self.inner(x)
        return self.out(y.reshape(24, -1, 4).mean(0))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(96, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.inner(torch.cat(x.flatten(1).chunk(2, 1)))
        return self.out(torch.cat(both.chunk(2), 1))


class Statistics(nn.Module):
    """A norm over the items that come together, before the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.norm = nn.Linear(192, 3), nn.BatchNorm1d(3, track_running_stats=False)
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(
            self.norm(self.out(x.flatten(1))) if len(x) > 1 else self.out(x.flatten(1))
        )


@pytest.mark.parametrize("module", [First(False), First(True), Siamese(), Statistics()])
def test_layers_whose_rows_are_not_item_after_item_are_left_out(module: nn.Module) -> None:
    module, seen, every = module.eval(), list[str](), {"inner": None, "out": None}

    def fit(path: str, layer: Layer, known: Inputs) -> nn.Module:
        seen.append(path)
        assert known.wanted is not None
        assert known.moments is not None
        torch.testing.assert_close(
            known.wanted, layer.weight.double() @ known.moments, atol=1e-5, rtol=1e-4
        )
        return layer

    expected = forward(module, items())
    wanted = Wanted(module, every, items())
    assert wanted.paths == ["out"]
    wanted.fit(module, every, fit)
    assert seen == ["out"]
    assert torch.equal(forward(module, items()), expected)


def test_layers_that_are_reached_by_some_items_alone_are_left_out() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(192, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            y = torch.zeros(len(x), 4)
            some = x[:, 0] > 0
            y[some] = self.inner(x[some])
            return self.out(y)

    torch.manual_seed(0)
    module = Routed().eval()
    wanted = Wanted(module, {"inner": None, "out": None}, items())
    assert wanted.paths == ["out"]


def test_batches_of_several_lengths_are_not_one() -> None:
    assert first_items([(torch.zeros(2, 3),), (torch.zeros(2, 4),)], 4) is None


def test_values_that_are_not_finite_are_refused_with_the_layer() -> None:
    (x,) = items()
    x[-1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="layer 0 is given values that are not finite"):
        Wanted(net(), EVERY, (x,))


def test_values_between_layers_count_for_the_room_they_take() -> None:
    """Of attention, in code of its own: a product of all tokens with all others."""

    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return (x[:, :, None] * x[:, None, :]).softmax(-1).sum(1)

    # The products, and their softmax; views of the inputs take nothing.
    count = in_turn.ROOM // (4 * (192 + 2 * 192 * 192))
    assert items_with_room(Products(), items(), 10**9) == count


def test_what_waits_for_a_branch_takes_room() -> None:
    class Branched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1) + 1
            y = x
            for _ in range(5):
                y = y * 2  # of these one is left when the next is there
            return x + y

    assert items_with_room(Branched(), items(), 10**9) == in_turn.ROOM // (4 * 192 * 4)


def test_layers_called_for_other_rows_are_left_alone() -> None:
    module = net()
    cut = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, stride=2), *copied(module)[1:5]).eval()

    seen, before = list[str](), copied(cut).state_dict()

    def fit(path: str, layer: Layer, known: Inputs) -> nn.Module:
        seen.append(path)
        return layer

    Wanted(module, EVERY, items()).fit(cut, {"2": None}, fit)
    assert seen == []
    assert all(torch.equal(one, before[name]) for name, one in cut.state_dict().items())


def test_items_are_as_many_as_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # The inputs of 3 items, and what the first layer gives; all that follows is smaller.
    monkeypatch.setattr(in_turn, "ROOM", 3 * 4 * (3 * 8 * 8 + 4 * 4 * 4 + 4 * 5))
    monkeypatch.setattr(in_turn, "LEAST", 3)
    assert items_with_room(net(), items(), 20) == 3
    monkeypatch.setattr(in_turn, "LEAST", 4)
    assert items_with_room(net(), items(), 20) == 0
    assert items_with_room(net(), items(), 3) == 3, "there are no more"


def test_rows_are_fewer_where_there_is_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    floats = 20 * 16 * 4 + 20 * 4 * 5 + 20 * 6
    monkeypatch.setattr(in_turn, "RECORDED", 2 * floats)
    every = {"0": 20 * 16, "2": 80, "5": 20}
    outputs = {4: "0", 5: "2", 6: "5"}
    half = Wanted(net(), EVERY, items(), lambda layer: every[outputs[len(layer.weight)]])
    assert half.paths == list(EVERY)
    counts = {path: sum(len(one.outputs) for one in some) for path, some in half._parts.items()}
    assert counts == {path: count // 2 for path, count in every.items()}
    monkeypatch.setattr(in_turn, "RECORDED", floats // 2)
    assert not Wanted(net(), EVERY, items(), lambda layer: 320).paths


def test_first_items_of_batches() -> None:
    (x,) = items()
    found = first_items([(one,) for one in x.split(6)], 13)
    assert found is not None
    assert torch.equal(found[0], x[:13])
