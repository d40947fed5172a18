"""quantize() as a step: its bound on the loss, and what its log says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from bench_fixtures import small_digits
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import IllegalChain, UserError
from compress.int8.calibration import Calibration
from compress.int8.ranges import Range
from compress.int8.settings import Settings
from compress.int8.simulated import Simulation
from compress.model import Model, forward
from compress.tasks.base import Subset, TensorSplit, stacked_inputs
from compress.techniques import chain
from compress.techniques import quantize as room
from compress.zoo.source import Changed

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
    real, real_float = room.session, room.opened

    def opened(content: bytes):
        graph = onnx.load_from_string(content).graph
        names = [tensor.name for tensor in graph.initializer]
        held.append(sum(name.endswith("_bias_quantized") for name in names))
        return real(content)

    def opened_float(model: ir.Model):
        held.append(0)
        return real_float(model)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        products = held[-1]
        return torch.arange(len(outputs)) >= round(0.02 * products * len(outputs))

    plain = step(trained, "quantize(max_drop=None)")
    assert len([row for row in rows(plain, "layer") if row.get("sqnr")]) == 3
    monkeypatch.setattr(room, "session", opened)
    monkeypatch.setattr(room, "opened", opened_float)
    monkeypatch.setattr(type(DATA.task), "correct", correct)
    log = step(trained, "quantize(max_drop=2.5)")
    [row] = rows(log, "max_drop")
    assert len(row["floats"]) == 2
    assert row["drop"] == pytest.approx(2, abs=0.5)
    assert any("2 of 3 products stay float" in note for note in log.notes)
    whys = [row.get("why") for row in rows(log, "layer")]
    assert whys.count("as int8 it loses too much accuracy") == 2


@pytest.mark.parametrize(("lost", "floats"), [(1, 0), (2, 1)])
def test_one_item_of_few_is_no_loss_that_products_become_float_for(
    trained, monkeypatch, lost: int, floats: int
):
    """Of 40 items one is 2.5 points: no bound below that could be kept but by chance."""
    files = []
    real = room.session

    def opened(content: bytes):
        files.append(content)
        return real(content)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(outputs)) >= (lost if len(files) == 1 else 0)

    few = Subset(DATA.validation, torch.arange(40))
    monkeypatch.setattr(room, "session", opened)
    monkeypatch.setattr(type(DATA.task), "correct", correct)
    log = step(trained, "quantize(max_drop=0.5)", validation=few)
    [row] = rows(log, "max_drop")
    assert len(row["floats"]) == floats
    assert any("too few to be sure of max_drop=0.5" in note for note in log.notes)


def test_a_bound_that_few_items_cannot_show_is_said(trained):
    """With no flip among n items, losses below about 2.7 / n can't be excluded (Tango 1998)."""
    log = step(trained, "quantize(max_drop=0.5)")
    [row] = rows(log, "max_drop")
    assert row["drop"] < 0.5 < row["most"]
    assert any("validation images are too few to be sure of max_drop=0.5" in n for n in log.notes)
    log = step(trained, "quantize(max_drop=20)")
    [row] = rows(log, "max_drop")
    assert row["most"] < 20
    assert not [note for note in log.notes if "too few" in note]


def test_what_is_excluded_stays_float(trained):
    log = step(trained, "quantize(exclude=['2', 'Gemm'])")
    found = {row["node"]: row for row in rows(log, "layer") if row["type"] in ("Conv", "Gemm")}
    assert [row["int8"] for row in found.values()] == [True, False, False]
    assert [row["layer"] for row in found.values()] == ["0", "2", "5"]
    assert [row.get("why") for row in found.values()] == [None, *2 * ["it was excluded"]]
    with pytest.raises(UserError, match=r"'con\*' matches nothing.*The products are: 0 or "):
        step(trained, "quantize(exclude=['con*'])")


def test_fewer_bits_are_coarser(trained):
    errors = {}
    for bits in (8, 4):
        log = step(trained, f"quantize(bits={bits}, max_drop=None)")
        errors[bits] = [row["sqnr"] for row in rows(log, "layer") if "sqnr" in row]
    # Four bits fewer are 16 times the step: 24 dB, of which compensated rounding wins some back.
    assert all(4 < one - other < 25 for one, other in zip(errors[8], errors[4], strict=True))


def test_layers_have_bits_of_their_own(trained):
    step_of = chain("quantize(bits={'2': 4, 'Conv': 6}, max_drop=None)")
    assert repr(step_of) == "quantize(max_drop=None, bits=(('2', 4), ('Conv', 6)))"
    assert chain(repr(step_of)) == step_of
    assert hash(step_of) == hash(chain("quantize(bits=[['2', 4], ['Conv', 6]], max_drop=None)"))
    context = StepContext(DATA.task, calibration=DATA.calibration, validation=DATA.validation)
    for text, largest in (
        (repr(step_of), {"0": 31, "2": 7, "5": 127}),
        ("quantize(bits={'Conv': 6, '2': 4}, weight_only=True)", {"0": 31, "2": 31, "5": 127}),
    ):
        made = onnx.load_from_string(run(chain(text), trained, context).onnx)
        found = dict.fromkeys(largest, 0)
        for one in made.graph.initializer:
            layer, weight, _ = one.name.partition(".weight")
            if weight and one.data_type == onnx.TensorProto.INT8:
                most = int(np.abs(numpy_helper.to_array(one)).max())
                found[layer] = max(found[layer], most)
        # The largest weight of a channel is the largest integer, where no pair would saturate.
        assert all(largest[name] / 2 < one <= largest[name] for name, one in found.items()), found


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("{'con*': 4}", r"bits: 'con\*' matches nothing.*The products are: 0 or "),
        ("{'2': 9}", "must be a whole number from 2 to 8, or such numbers by names of layers"),
        ("{}", "by names of layers"),
        ("[('2', 4, 4)]", "by names of layers"),
        ("'4'", "by names of layers"),
        ("{2: 4}", "by names of layers"),
    ],
)
def test_bits_that_no_layer_can_have_are_refused(trained, bits, said):
    with pytest.raises(UserError, match=said):
        step(trained, f"quantize(bits={bits})")


def test_training_rounds_to_the_bits_of_each_layer(trained):
    plan = chain("quantize(bits={'2': 3})")
    simulation = Simulation(
        trained.copy().module,
        plan.settings,
        [],
        plan.layers_left(trained),
        plan.layer_bits(trained),
    )
    weight = torch.linspace(-1, 1, 101).reshape(1, -1).clone()
    levels = {
        path: len(product.rounded(weight).unique()) for path, product in simulation.products.items()
    }
    assert levels["2"] == 7
    assert min(levels["0"], levels["5"]) > 60
    hints = json.loads(json.dumps(plan.settings.hint({"0": Range(0.5, 3, "best")})))
    assert plan.settings.trained_by(hints).keys() == {"0"}
    assert not chain("quantize(bits=3)").settings.trained_by(hints)


def test_items_that_were_not_scaled_are_left_out(trained):
    inputs, targets = DATA.calibration.fetch(torch.arange(100))
    ranges = {}
    for name, factor in (("clean", 1), ("damaged", 100)):
        # The task scales to [0, 1] and normalizes: what it is given may be too large all the same.
        images = inputs[0].float()
        images[[3, 50]] *= factor
        split = TensorSplit((images,), targets)
        log = step(trained, "quantize(calibration=100, max_drop=None)", calibration=split)
        ranges[name] = [row.get("sqnr") for row in rows(log, "layer") if row.get("sqnr")]
        said = [note for note in log.notes if "2 of 100 calibration items" in note]
        assert bool(said) == (name == "damaged")
    assert ranges["damaged"] == pytest.approx(ranges["clean"], abs=1)


@pytest.mark.parametrize("text", ["quantize(dynamic=True)", "quantize(weight_only=True)"])
def test_without_ranges_no_calibration_is_needed(trained, text):
    assert not chain(text).needs
    log = step(trained, text, calibration=None)
    assert [row["int8"] for row in rows(log, "layer")][-1]


def test_weights_below_8_bits_are_rounded_on_calibration_items(trained):
    half, whole = (
        chain(text) for text in ("quantize(weight_only=True, bits=4)", "quantize(weight_only=True)")
    )
    assert half.needs == {"calibration"}
    with pytest.raises(UserError, match="needs calibration"):
        run(half, trained, StepContext(DATA.task))
    context = StepContext(DATA.task, calibration=DATA.calibration)
    sizes = [len(run(step, trained, context).onnx) for step in (half, whole)]
    packed = onnx.load_from_string(run(half, trained, context).onnx)
    weights = [one for one in packed.graph.initializer if one.name.endswith("weight_quantized")]
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT4}
    assert sizes[1] - sizes[0] == pytest.approx(sum(len(one.raw_data) for one in weights), rel=0.05)


def test_sums_that_saturate_here_are_said(trained, monkeypatch):
    for saturates in (True, False):
        monkeypatch.setattr(room, "saturates", lambda features, here=saturates: here)
        for option in ("dynamic=True", "weight_only=True", "seconds=0"):
            log = step(trained, f"quantize({option}, target='vnni')")
            said = any("this CPU has no VNNI" in note for note in log.notes)
            assert said is (saturates and option != "weight_only=True")


def test_a_file_that_is_hardly_smaller_says_so():
    module = nn.Sequential(nn.Conv2d(1, 64, 8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).eval()
    model = Model(module, stacked_inputs(DATA.task, DATA.train, 2))
    noted = "bytes; layers.csv says what of it is float"
    assert any(noted in note for note in step(model, "quantize(dynamic=True)").notes)
    assert not step(model, "quantize(weight_only=True)").notes


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
    log = step(trained, "quantize()", validation=None)
    assert not rows(log, "max_drop")
    assert any("more than max_drop=0.5 was not checked" in note for note in log.notes)
    log = step(trained, "quantize(max_drop=None)", validation=None)
    assert not [note for note in log.notes if "max_drop" in note]


def test_validation_items_that_calibrated_are_counted(trained):
    """By what they hold, however the splits were drawn."""
    copied = TensorSplit(*DATA.train.fetch(torch.arange(60)))
    for validation, both in ((copied, 40), (DATA.validation, 0)):
        items = Subset(DATA.train, torch.arange(20, 120))
        log = step(trained, "quantize()", calibration=items, validation=validation)
        said = [note for note in log.notes if "also calibrated int8" in note]
        assert len(said) == bool(both)
        assert all(note.startswith("quantize: 40 of the 60 validation") for note in said)


def test_one_class_alone_is_said_where_classes_are_known(trained):
    inputs, targets = DATA.train.fetch(torch.arange(len(DATA.train)))
    of_one = Subset(TensorSplit(inputs, targets), torch.nonzero(targets == 3)[:36, 0])
    unknown = Changed(of_one, lambda images: images, labelled=False)
    for items, said in ((of_one, True), (unknown, False), (DATA.calibration, False)):
        log = step(trained, "quantize(calibration=36, max_drop=None)", calibration=items)
        assert said == any("all 36 calibration items are of one class" in n for n in log.notes)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8)])
def test_calibration_items_of_another_shape_are_refused(trained, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, *shape), generator=generator, dtype=torch.uint8)
    other = TensorSplit((images,), torch.arange(40) % 10)
    found, wanted = (" x ".join(map(str, size)) for size in (shape, (1, 8, 8)))
    with pytest.raises(UserError, match=f"items are {found}, and the network takes {wanted}"):
        step(trained, "quantize()", calibration=other)


def test_a_file_that_is_int8_already_is_refused(trained):
    with pytest.raises(IllegalChain):
        chain("quantize() -> quantize()")
    context = StepContext(DATA.task, calibration=DATA.calibration, validation=DATA.validation)
    made = run(chain("quantize(max_drop=None)"), trained, context)
    with pytest.raises(UserError):
        run(chain("quantize()"), made, context)


def test_calibration_that_shows_nothing_is_refused(trained):
    one = TensorSplit(*DATA.train.fetch(torch.zeros(40, dtype=torch.long)))
    with pytest.raises(UserError, match="all 40 calibration items are the same"):
        step(trained, "quantize()", calibration=one)
    few = Subset(DATA.calibration, torch.arange(5))
    notes = step(trained, "quantize()", calibration=few).notes
    assert any("calibrated on 5 of" in note for note in notes)


REFUSED = (
    *("max_drop=0", "max_drop=-1", "seconds=-1", "method='median'", "bits=1", "bits=9", "bits=4.0"),
    *("exclude='conv1'", "dynamic=True, weight_only=True", "dynamic=True, bits=4"),
)


@pytest.mark.parametrize("text", REFUSED)
def test_settings_that_mean_nothing_are_refused(text):
    with pytest.raises(IllegalChain, match="quantize"):
        chain(f"quantize({text})")


def test_an_option_of_before_is_understood():
    assert chain("quantize(reduce_range=True)") == chain("quantize()")


def test_training_under_rounding_brings_the_rounded_net_nearer_to_its_teacher(trained):
    """At two bits, rounded to the nearest, and against as long a training without it."""
    context = StepContext(*(DATA.task, DATA.train, DATA.validation, DATA.calibration, trained))
    inputs = stacked_inputs(DATA.task, DATA.validation, len(DATA.validation))
    teacher = forward(trained.module, inputs).log_softmax(1)
    distance = {}
    for aware in ("", ", quantization_aware=quantize(bits=2)"):
        text = f"distill(epochs=4, hard_weight=0.0, learning_rate=0.001{aware})"
        made = run(chain(text), trained, context)
        items = Calibration(DATA.task, DATA.calibration)
        rounding = Simulation(made.module, Settings(bits=2), items)
        rounding.observe()
        made.module.eval()
        student = forward(made.module, inputs).log_softmax(1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        distance[bool(aware)] = float(divergence)
    assert distance[True] < 0.5 * distance[False]


def test_the_ranges_of_a_training_travel_and_end_where_weights_change(trained):
    context = StepContext(*(DATA.task, DATA.train, DATA.validation, DATA.calibration, trained))
    made = run(chain("distill(epochs=1, quantization_aware=quantize())"), trained, context)
    assert list(made.hints["int8"]["ranges"]) == ["0", "2", "5"]
    log = step(made, "quantize()")
    assert [row.get("range") for row in rows(log, "layer") if row["int8"]][:2] == ["trained"] * 2
    assert not [note for note in log.notes if "chosen anew" in note]
    other = step(made, "quantize(bits=4)")
    assert [note for note in other.notes if "trained for rounding with other bits" in note]
    for text in ("finetune(epochs=1)", "prune_weights(sparsity=0.5)"):
        assert not run(chain(text), made, context).hints


def test_the_best_epoch_settles_with_its_own_ranges(trained):
    """At a rate that ruins later epochs, the best is an early one; its ranges are found for it."""
    context = StepContext(
        *(DATA.task, DATA.train, DATA.validation, DATA.calibration, trained), log=StepLog()
    )
    text = "distill(epochs=3, keep='best', learning_rate=0.03, quantization_aware=quantize())"
    made = run(chain(text), trained, context)
    simulation = Simulation(
        *(made.module, Settings(), Calibration(DATA.task, context.calibration_items(256)))
    )
    simulation.observe()
    ranges = {path: one.range for path, one in simulation.products.items()}
    found = {path: one.scale for path, one in ranges.items() if one is not None}
    kept = {path: scale for path, (scale, _) in made.hints["int8"]["ranges"].items()}
    assert kept == pytest.approx(found, rel=0.05)


def test_what_is_excluded_is_checked_before_a_training(trained, monkeypatch):
    context = StepContext(*(DATA.task, DATA.train, DATA.validation, DATA.calibration, trained))
    text = "distill(epochs=1, quantization_aware=quantize(exclude=['{}']))"
    made = run(chain(text.format("Gemm")), trained, context)
    assert list(made.hints["int8"]["ranges"]) == ["0", "2"]
    monkeypatch.setattr("compress.techniques.distill.fit", None)
    with pytest.raises(UserError, match="'nonsense' matches nothing"):
        run(chain(text.format("nonsense")), trained, context)


@pytest.mark.parametrize("option", ["exclude=['nonsense']", "bits={'nonsense': 4}"])
def test_names_are_looked_up_before_what_only_trains(trained, option):
    context = StepContext(DATA.task, DATA.train, enters=trained)
    for text in ("finetune(epochs=9) -> quantize({})", "quantize({}, weight_only=True)"):
        with pytest.raises(UserError, match="'nonsense' matches nothing"):
            chain(text.format(option)).check(context)
    chain("finetune() -> quantize(exclude=['Gemm'], bits={'0': 4})").check(context)
    # What pruning leaves is not known yet.
    chain(f"prune_channels(macs=0.5) -> quantize({option})").check(context)


@pytest.mark.parametrize("value", ["finetune()", "quantize(dynamic=True)", "8"])
def test_only_a_quantize_with_settled_ranges_can_be_trained_for(value):
    with pytest.raises(IllegalChain, match=r"quantization_aware is a quantize\(...\)"):
        chain(f"distill(quantization_aware={value})")
