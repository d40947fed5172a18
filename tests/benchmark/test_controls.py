"""Controls of equal cost: the same training, without the technique."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from compress.benchmark.plan.rows import Row, control_of, rows_of, with_controls
from compress.benchmark.plan.suite import Suite, load_suite
from compress.compressor import Chain, Compressor
from compress.context import StepContext
from compress.model import Model
from compress.techniques import chain
from compress.training import Training


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("distill(student='mlp', epochs=3)", "train(student='mlp', epochs=3)"),
        (
            "distill(student='mlp', epochs=3, optimizer='sgd', learning_rate=0.1, loss='logits') "
            "-> prune_channels(macs=0.5) -> finetune(epochs=2) -> quantize()",
            "train(student='mlp', epochs=5, optimizer='sgd', learning_rate=0.1)",
        ),
        (
            "train(student='mlp', epochs=2) -> distill(student='cnn-small', epochs=3, "
            "teacher='input', batch_size=64)",
            "train(student='cnn-small', epochs=5, batch_size=64)",
        ),
        ("train(student='mlp', epochs=2) -> quantize()", "train(student='mlp', epochs=2)"),
        # The same learning rate is a default of one and not of the other.
        ("distill(epochs=4)", "finetune(epochs=4, learning_rate=0.002)"),
        ("distill(epochs=4, learning_rate=0.0005)", "finetune(epochs=4)"),
        ("prune_weights(sparsity=0.5) -> finetune(epochs=4)", "finetune(epochs=4)"),
        ("finetune(epochs=4) -> quantize()", "finetune(epochs=4)"),
        (
            "finetune(epochs=1) -> prune_weights(sparsity=0.5) -> "
            "finetune(epochs=2, keep='best', weight_decay=0.0)",
            "finetune(epochs=3, weight_decay=0.0, keep='best')",
        ),
        (
            "repeat(3, prune_channels(macs=0.5) -> finetune(epochs=2)) -> "
            "finetune(epochs=5, optimizer='sgd')",
            "finetune(epochs=11)",  # 3 · 2 epochs are more than 5
        ),
        ("repeat(2, repeat(3, finetune(epochs=2)))", "finetune(epochs=12)"),
        # A criterion that looks at gradients trains nothing.
        (
            "prune_channels(macs=0.5, criterion='fisher') -> finetune(epochs=4)",
            "finetune(epochs=4)",
        ),
        (
            "sparsify(epochs=1) -> prune_channels(macs=0.5) -> finetune(epochs=2)",
            "finetune(epochs=3)",
        ),
    ],
)
def test_the_control_trains_as_long_with_the_same_settings(text: str, control: str) -> None:
    assert repr(control_of(chain(text))) == control
    assert control_of(chain(control)) is None


@pytest.mark.parametrize(
    "text",
    [
        "quantize()",
        "prune_weights(sparsity=0.5) -> quantize()",
        "repeat(2, prune_channels(macs=0.5))",
    ],
)
def test_what_does_not_train_has_none(text: str) -> None:
    assert control_of(chain(text)) is None


@dataclass(frozen=True, repr=False)
class OwnWay(Compressor):
    """A plug-in that trains, but not as our steps do."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"train"})

    def compress(self, model: Model, bench: StepContext) -> Model:
        return model


@dataclass(frozen=True, repr=False)
class Twins(Training):
    @property
    def students(self) -> frozenset[str]:
        return frozenset({"mlp", "cnn-small"})

    def compress(self, model: Model, bench: StepContext) -> Model:
        return model


@pytest.mark.parametrize("step", [OwnWay(), Twins()])
def test_plug_ins_that_train_in_their_own_way_have_a_reason(step: Compressor) -> None:
    found = control_of(Chain(chain("finetune(epochs=1)"), step))
    assert found == f"{step.name()} trains in its own way, which no control repeats"


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("distill(student='same', epochs=3)", "train(student='resnet20', epochs=3)"),
        (
            "repeat(2, distill(student='same', teacher='input', epochs=3), result='ensemble')",
            "train(student='resnet20', epochs=6)",
        ),
        ("carve(ratio=0.5) -> distill(epochs=2)", "finetune(epochs=2, learning_rate=0.002)"),
        (
            "distill(student='mlp', epochs=1) -> "
            "distill(student='same', teacher='input', epochs=2)",
            "train(student='mlp', epochs=3)",
        ),
    ],
)
def test_students_of_the_baselines_own_architecture(text: str, control: str) -> None:
    assert repr(control_of(chain(text), "resnet20")) == control


def test_where_no_control_can_be_there_is_a_reason() -> None:
    born = control_of(chain("distill(student='same', epochs=3)"))
    assert born == "no name builds its student with fresh weights"
    carved = control_of(chain("carve(ratio=0.5) -> distill(student='same', epochs=3)"), "mlp")
    assert carved == born
    transfer = control_of(chain("distill(epochs=3, transfer='mnist') -> quantize()"), "mlp")
    assert transfer == "it learns from a transfer set, which labels alone cannot do"


def test_a_student_born_again_is_no_baseline() -> None:
    suite = Suite("test", "digits", "mlp", ("train(epochs=1)", "distill(student='same', epochs=2)"))
    baseline, found = rows_of(suite, has_weights=False)
    assert repr(baseline) == "train(epochs=1)"
    assert [row.text for row in found] == [
        "baseline",
        "distill(student='same', epochs=2)",
        "train(student='mlp', epochs=2)",
    ]


def rows(*texts: str) -> list[Row]:
    return [Row("baseline", None), *(Row(text, chain(text)) for text in texts)]


def test_controls_come_last_and_once() -> None:
    given = rows("distill(student='mlp')", "quantize()", "distill(student='mlp') -> quantize()")
    found = with_controls(given, add=True)
    assert [row.text for row in found] == [
        *(row.text for row in given),
        "train(student='mlp', epochs=1)",
    ]
    assert [row.role for row in found] == ["", "", "", "", "control"]
    control = found[-1].text
    assert [row.control for row in found] == ["", control, "", control, ""]


def test_a_control_that_stands_in_the_table_is_taken_however_it_is_written() -> None:
    given = rows("prune_weights(sparsity=0.5) -> finetune(epochs=2, weight_decay=0)")
    given += [Row("mine", chain("finetune(epochs=2, weight_decay=0.0)"))]
    for add in (True, False):
        found = with_controls(given, add)
        assert [row.text for row in found] == [row.text for row in given]
        assert found[1].control == "mine"
        assert found[2].role == ""


def test_without_controls_no_row_is_added() -> None:
    given = rows("distill(student='mlp')")
    assert with_controls(given, add=False) == tuple(given)


def test_a_reason_stands_on_the_row() -> None:
    row = Row("own_way()", OwnWay())
    assert "own way" in with_controls([row], add=True)[0].uncontrolled
    assert with_controls([row], add=False) == (row,)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_every_chain_of_a_built_in_suite_that_trains_has_its_control(name: str) -> None:
    suite = load_suite(name)
    _, found = rows_of(suite, has_weights=suite.weights is not None)
    texts = [row.text for row in found]
    for row in found:
        if any(word in row.text for word in ("distill", "->")) and "epochs" in row.text:
            assert row.control in texts
            assert "distill" not in row.control


def test_a_suite_switches_them_off() -> None:
    suite = Suite("mine", "digits", "mlp", ("train() -> distill(student='mlp')",), controls=False)
    _, found = rows_of(suite, has_weights=False)
    assert len(found) == 2
