"""quantize() as a step: its bound on the loss, and what its log says."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from bench_fixtures import small_digits
from torch import nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import IllegalChain, UserError
from compress.model import Model
from compress.tasks.base import Subset, TensorSplit, stacked_inputs
from compress.techniques import chain
from compress.techniques import quantize as room

DATA = small_digits()


@pytest.fixture(scope="module")
def trained() -> Model:
    module = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    probe = stacked_inputs(DATA.task, DATA.train, 4)
    context = StepContext(DATA.task, train=DATA.train, validation=DATA.validation)
    return run(chain("train(epochs=3)"), Model(module.eval(), probe), context)


def step(model: Model, text: str, **changed: object) -> StepLog:
    context = StepContext(
        DATA.task, calibration=DATA.calibration, validation=DATA.validation, log=StepLog()
    )
    run(chain(text), model, replace(context, **changed))  # type: ignore[arg-type]
    return context.log


def rows(log: StepLog, kind: str) -> list[dict]:
    return [row for row in log.rows if row["kind"] == kind]


def test_every_node_is_accounted_for(trained):
    layers = rows(step(trained, "quantize()"), "layer")
    assert [row["type"] for row in layers if row["int8"]] == ["Conv", "Conv", "Reshape", "Gemm"]
    products = [row for row in layers if row["type"] in ("Conv", "Gemm")]
    assert all(row["sqnr"] > 25 for row in products)


def test_what_loses_too_much_goes_back_to_float(trained, monkeypatch):
    """Answers are made as wrong as the file has int8 products, at two points each."""
    held = []
    real = room.session

    def opened(content: bytes):
        graph = onnx.load_from_string(content).graph
        names = [tensor.name for tensor in graph.initializer]
        held.append(sum(name.endswith("_bias_quantized") for name in names))
        return real(content)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        products = held[-1]
        return torch.arange(len(outputs)) >= round(0.02 * products * len(outputs))

    plain = step(trained, "quantize(max_drop=None)")
    assert len([row for row in rows(plain, "layer") if row.get("sqnr")]) == 3
    monkeypatch.setattr(room, "session", opened)
    monkeypatch.setattr(type(DATA.task), "correct", correct)
    log = step(trained, "quantize(max_drop=2.5)")
    [row] = rows(log, "max_drop")
    assert len(row["floats"]) == 2
    assert row["drop"] == pytest.approx(2, abs=0.5)
    assert any("2 of 3 products stay float" in note for note in log.notes)
    whys = [row.get("why") for row in rows(log, "layer")]
    assert whys.count("as int8 it loses too much accuracy") == 2


def test_a_bound_that_cannot_be_met_is_said(trained, monkeypatch):
    calls = []

    def correct(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(outputs))
        return torch.full((len(outputs),), len(calls) == 1)  # float is always right, int8 never

    task = replace(DATA.task)
    monkeypatch.setattr(type(task), "correct", lambda self, *given: correct(*given))
    log = step(trained, "quantize(max_drop=1.0)")
    [row] = rows(log, "max_drop")
    assert row["drop"] == 100
    assert any("max_drop=1 was not reached" in note for note in log.notes)
    # None, one, two and all three products in float were tried.
    assert len(calls) == 5


def test_without_a_bound_or_validation_nothing_is_compared(trained):
    assert not rows(step(trained, "quantize(max_drop=None)"), "max_drop")
    assert not rows(step(trained, "quantize()", validation=None), "max_drop")


def test_calibration_that_shows_nothing_is_refused(trained):
    one = TensorSplit(*DATA.train.fetch(torch.zeros(40, dtype=torch.long)))
    with pytest.raises(UserError, match="all 40 calibration items are the same"):
        step(trained, "quantize()", calibration=one)
    few = Subset(DATA.calibration, torch.arange(5))
    notes = step(trained, "quantize()", calibration=few).notes
    assert any("only 5 calibration items" in note for note in notes)


@pytest.mark.parametrize("text", ["max_drop=0", "max_drop=-1", "seconds=-1", "method='entropy'"])
def test_settings_that_mean_nothing_are_refused(text):
    with pytest.raises(IllegalChain, match="quantize"):
        chain(f"quantize({text})")


def test_an_option_of_before_is_understood():
    assert chain("quantize(reduce_range=True)") == chain("quantize()")
