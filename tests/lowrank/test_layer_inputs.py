"""What layers are given is known as it is asked for, in as few passes as there is room for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.lowrank import layer_inputs
from compress.lowrank.layer_inputs import LayerInputs, regularised
from compress.lowrank.moments import moments, size_of
from compress.model import Model


def model() -> Model:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(5)]
    return Model(nn.Sequential(*layers).eval(), (torch.randn(2, 6),))


def items() -> list[tuple[Tensor, ...]]:
    return [(torch.randn(30, 6, generator=torch.Generator().manual_seed(1)),)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []

    def counted(module: nn.Module, calls: dict[str, int], *rest: object) -> object:
        found.append(sorted(calls))
        return moments(module, calls, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(layer_inputs, "moments", counted)
    return found


def test_one_pass_where_all_have_room(passes: list[list[str]]) -> None:
    given = LayerInputs(model(), items(), 30)
    for path in ("3", "0", "4"):
        assert given.of([path]).keys() == {path}
    assert passes == [["0", "1", "2", "3", "4"]]


def test_else_those_that_come_next(
    passes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = LayerInputs(model(), items(), 30)
    monkeypatch.setattr(layer_inputs, "TOGETHER", 2 * size_of(nn.Linear(6, 6)))
    for path in "01234":
        given.of([path])
    assert passes == [["0", "1"], ["2", "3"], ["0", "4"]]
    passes.clear()
    assert given.of(["0", "2", "4"]).keys() == {"0", "2", "4"}
    assert passes == [["2"]], "what is known already stays, though there is no room for more"


def test_what_it_says_is_what_moments_say() -> None:
    one = model()
    [expected] = moments(one.module, {"2": 1}, items(), 30).values()
    found = LayerInputs(one, items(), 30).of(["2"])["2"]
    torch.testing.assert_close(found.moments, expected.moments)
    torch.testing.assert_close(found.mean, expected.mean)


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_fitted_by(bias: bool) -> None:
    """Centred with a bias; a hundredth of the mean variance, or more where rows are few."""
    [known] = moments(model().module, {"0": 1}, items(), 30).values()
    assert known.moments is not None
    second = known.moments + (0 if bias else torch.outer(known.mean, known.mean))
    found, ridge = regularised(known, bias)
    torch.testing.assert_close(found, second)
    square = float((known.moments.diagonal() + known.mean**2).mean())
    assert ridge == pytest.approx(6 / 30 * float(second.diagonal().mean()) + 1e-6 * square)
    known.rows = 10_000
    _, ridge = regularised(known, bias)
    assert ridge == pytest.approx(0.01 * float(second.diagonal().mean()) + 1e-6 * square)
