"""quantize() places by measuring: the whole step, with made-up seconds of what it times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from bench_fixtures import small_digits
from caches import Folder
from torch import nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.errors import UserError
from compress.model import Model, forward
from compress.tasks.base import stacked_inputs
from compress.techniques import chain, int8_placement, timed_files
from compress.techniques.int8_placement import mostly_float
from compress.techniques.quantize import Quantize
from compress.timing.launch import WorkerFailed

DATA = small_digits()
PRODUCTS = ("Conv", "Gemm")


def network() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )
    return Model(module.eval(), stacked_inputs(DATA.task, DATA.train, 4))


def int8_products(content: bytes) -> list[bool]:
    """Return of every product of a file, in order, whether its weight is stored as integers."""
    graph = onnx.load_from_string(content).graph
    made = {name for node in graph.node for name in node.output}
    return [node.input[1] in made for node in graph.node if node.op_type in PRODUCTS]


class Machine:
    """Stands for the process that times files: a product has its seconds as float and as int8."""

    def __init__(self, floats: Sequence[float], ints: Sequence[float]) -> None:
        self.floats, self.ints = floats, ints
        self.calls: list[Mapping[str, bytes]] = []
        self.time = 0.0
        self.fails_at = 1000
        self.failure: BaseException = KeyboardInterrupt()

    def __call__(
        self, files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        if len(self.calls) == self.fails_at:
            raise self.failure
        self.time += 0.5 + seconds
        self.calls.append(files)
        noise = np.random.default_rng(len(self.calls))
        return {
            name: self.cost(content) * np.exp(0.002 * noise.standard_normal(40))
            for name, content in files.items()
        }

    def cost(self, content: bytes) -> float:
        kinds = int8_products(content)
        pairs = zip(kinds, self.ints, self.floats, strict=True)
        return sum(one if is_int8 else other for is_int8, one, other in pairs)

    def now(self) -> float:
        return self.time


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
    """Have a machine time the files of nets of any size."""

    def use(machine: Machine) -> Machine:
        monkeypatch.setattr(timed_files, "seconds_of", machine)
        monkeypatch.setattr(int8_placement, "monotonic", machine.now)
        monkeypatch.setattr(timed_files, "LEAST_MACS", 0)
        return machine

    return use


def step(text: str, cache: Folder | None = None, validate: bool = False) -> tuple[bytes, StepLog]:
    context = StepContext(DATA.task, calibration=DATA.calibration, cache=cache, log=StepLog())
    if validate:
        context = replace(context, validation=DATA.validation)
    made = run(chain(text), network(), context).onnx
    assert made is not None
    return made, context.log


def placed(log: StepLog) -> dict:
    [row] = [row for row in log.rows if row["kind"] == "placement"]
    return row


def test_what_is_faster_as_float_stays_float(timed):
    timed(Machine(floats=[1, 1, 1, 1], ints=[0.5, 2, 0.5, 0.5]))
    made, log = step("quantize()")
    assert int8_products(made) == [True, False, True, True]
    row = placed(log)
    assert row["complete"]
    assert row["speedup"] == pytest.approx(4 / 2.5, rel=0.01)
    assert row["gain"] == pytest.approx(3.5 / 2.5, rel=0.01)
    whys = [one.get("why") for one in log.rows if one.get("type") in PRODUCTS]
    assert whys == [None, "it is faster as float on this CPU", None, None]
    assert not [note for note in log.notes if "as long as float" in note]


def test_a_slower_int8_file_gives_way_to_the_float_one(timed):
    """The best has one product in int8."""
    timed(Machine(floats=[1, 1, 1, 1], ints=[2, 2, 2, 2]))
    made, log = step("quantize()")
    assert int8_products(made) == [False] * 4
    inputs = stacked_inputs(DATA.task, DATA.test, 8)
    assert made == export(network()) or np.allclose(
        predict(session(made), [inputs]), forward(network().module, inputs).numpy(), atol=1e-5
    )
    assert placed(log)["all_float"]
    [note] = [note for note in log.notes if "the file is the float one" in note]
    assert "takes 1.25 times as long as the float one here" in note
    assert "seconds=0 gives the one that is all int8" in note
    assert {row.get("int8") for row in log.rows if row["kind"] == "layer"} == {False}
    made, log = step("quantize(seconds=0)")
    assert int8_products(made) == [True] * 4


@pytest.mark.parametrize("slower", [1.02, 1.03, 1.05, 1.1])
def test_where_no_product_gains_the_file_is_the_float_one(timed, slower):
    """However little int8 is slower, and though what only moves values was not made float."""
    timed(Machine(floats=[1] * 4, ints=[slower] * 4))
    made, log = step("quantize()")
    assert int8_products(made) == [False] * 4
    assert placed(log)["all_float"]
    assert placed(log)["best"] < 0.999
    assert any("so the file is the float one" in note for note in log.notes)


def test_where_the_file_is_the_float_one_what_was_excluded_says_so(timed):
    timed(Machine(floats=[1] * 4, ints=[2] * 4))
    _, log = step("quantize(exclude=['0'])")
    whys = [one.get("why") for one in log.rows if one.get("type") in PRODUCTS]
    assert whys == ["it was excluded", *3 * ["it is faster as float on this CPU"]]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_net_of_which_nothing_can_be_int8_is_refused(timed, seconds):
    machine = timed(Machine(floats=[1] * 4, ints=[1] * 4))
    with pytest.raises(UserError, match="nothing is left to quantize"):
        step(f"quantize(seconds={seconds}, exclude=['Conv', 'Gemm'])")
    assert not machine.calls


def test_one_product_that_gains_is_int8_in_the_float_file(timed):
    """Seen from all int8 no one group of floats makes up for the others; from float one gains."""
    timed(Machine(floats=[1, 1, 1, 1], ints=[3, 3, 3, 0.5]))
    made, log = step("quantize()")
    assert int8_products(made) == [False] * 3 + [True]
    assert placed(log)["speedup"] > 1
    assert any("the file is mostly float" in note for note in log.notes)


def test_the_same_run_gives_the_same_file_however_short(timed, tmp_path):
    """Kept answers take no time, and count as what they took."""
    for number, seconds in enumerate((1, 8, 60)):
        cache = Folder(tmp_path / str(number))
        machine = timed(Machine(floats=[1, 1, 1, 1], ints=[0.5, 2, 2, 0.5]))
        first, log = step(f"quantize(seconds={seconds})", cache)
        count = len(machine.calls)
        again, other = step(f"quantize(seconds={seconds})", cache)
        assert again == first
        assert placed(other) == placed(log)
        assert len(machine.calls) == count, "everything was kept"


@pytest.mark.parametrize("seconds", [8, 60])
def test_an_interrupted_search_has_what_is_left(timed, tmp_path, seconds):
    whole = timed(Machine(floats=[1, 1, 1, 1], ints=[0.5, 2, 2, 0.5]))
    expected, log = step(f"quantize(seconds={seconds})")
    for fails_at in (0, 1, len(whole.calls) - 1):
        machine = timed(Machine(floats=[1, 1, 1, 1], ints=[0.5, 2, 2, 0.5]))
        machine.fails_at = fails_at
        cache = Folder(tmp_path / str(fails_at))
        with pytest.raises(KeyboardInterrupt):
            step(f"quantize(seconds={seconds})", cache)
        machine.fails_at = 1000
        made, other = step(f"quantize(seconds={seconds})", cache)
        assert made == expected
        assert len(machine.calls) == len(whole.calls), "what was measured is not measured again"
        assert placed(other)["seconds"] == pytest.approx(placed(log)["seconds"])


@pytest.mark.parametrize("seconds", [3, 10, 60])
def test_the_seconds_are_kept_to(timed, seconds):
    machine = timed(Machine(floats=[1, 1, 1, 1], ints=[0.5, 2, 2, 0.5]))
    _, log = step(f"quantize(seconds={seconds})")
    assert machine.time <= 1.1 * seconds
    assert placed(log)["seconds"] == pytest.approx(machine.time)


def test_a_timing_process_that_fails_is_said(timed):
    machine = timed(Machine(floats=[1] * 4, ints=[2] * 4))
    machine.fails_at, machine.failure = 0, WorkerFailed("the timing process was killed")
    made, log = step("quantize()")
    assert int8_products(made) == [True] * 4
    assert any(
        "nothing was placed by measuring, and whether int8 is faster than float is not known: "
        "the timing process was killed" in note
        for note in log.notes
    )


@pytest.mark.parametrize("missing", [True, False])
def test_a_float_file_that_does_not_run_is_said(timed, missing):
    class Without(Machine):
        def cost(self, content: bytes) -> float:
            return super().cost(content)

        def __call__(
            self, files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
        ) -> dict[str, np.ndarray]:
            found = super().__call__(files, samples, seconds)
            return {n: one for n, one in found.items() if not missing or n != "float"}

    timed(Without(floats=[1] * 4, ints=[0.5] * 4))
    _, log = step("quantize()")
    said = [note for note in log.notes if "could not be timed, so whether int8 is faster" in note]
    assert bool(said) == missing


@pytest.mark.parametrize(("as_int8", "gives_way"), [(0.1, False), (0.9, True)])
def test_floats_for_accuracy_that_make_a_file_slower_are_not_kept(
    timed, monkeypatch, as_int8: float, gives_way: bool
):
    """Each border between integers and floats costs; the last product is float for accuracy."""

    class Borders(Machine):
        def cost(self, content: bytes) -> float:
            kinds = int8_products(content)
            return super().cost(content) + (0.5 if len(set(kinds)) > 1 else 0.0)

    timed(Borders(floats=[1] * 4, ints=[as_int8] * 4))
    accurate = Quantize._accurate

    def with_a_float(self, made, exported, batches, context):
        floats = frozenset(made.worst_first[-1:])
        return replace(
            accurate(self, made, exported, batches, context),
            lowered=made.lowered(floats),
            floats=floats,
        )

    monkeypatch.setattr(Quantize, "_accurate", with_a_float)
    made, log = step("quantize()")
    assert any(int8_products(made)) != gives_way
    assert gives_way == any("so the file is the float one" in note for note in log.notes)


def test_small_nets_are_not_timed(timed, monkeypatch):
    machine = timed(Machine(floats=[1] * 4, ints=[2] * 4))
    monkeypatch.setattr(timed_files, "LEAST_MACS", 5e6)
    made, _ = step("quantize()")
    assert not machine.calls
    assert int8_products(made) == [True] * 4


def test_a_file_is_mostly_float_by_macs_or_by_bytes():
    assert not mostly_float(0.8, 0.35)
    assert mostly_float(0.79, 0.3)
    assert mostly_float(1.0, 0.36)
    assert mostly_float(None, 0.3)


def test_what_is_excluded_can_leave_a_file_mostly_float():
    _, log = step("quantize(exclude=['0', '2'])")
    rest = 16 * 8 * 72 + 128 * 10
    share = rest / (64 * 8 * (9 + 8 * 25) + rest)
    assert any(f"mostly float: {share:.0%} of its multiply-adds" in note for note in log.notes)
    _, log = step("quantize(exclude=['7'])")
    assert not [note for note in log.notes if "mostly float" in note]
