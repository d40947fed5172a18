"""Placement by measuring: with clocks that say what is right."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import pairwise

import deploy_models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.int8 import placement as room
from compress.int8.lower import fastest, placed
from compress.int8.placement import FLOAT, NOW, TIMING, Compared, Placement, alike, search
from compress.int8.rewrite import rewritten
from compress.int8.units import Unit, units
from compress.model import Model
from compress.timing.trial import seconds_of


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.out, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        return self.head(F.relu(self.out(F.relu(self.deep(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> ir.Model:
    module = deploy_models.randomized(Mobile())
    return rewritten(parsed(export(Model(module, (torch.zeros(1, 3, 16, 16),)))))


@pytest.fixture(scope="module")
def found(model: ir.Model) -> Mapping[str, Unit]:
    return placed(list(units(model.graph)))


def test_groups_are_of_alike_structure_and_of_what_is_known_to_matter(found):
    groups = alike(found)
    kinds = {words: sorted(found[name].kind for name in names) for words, names in groups.items()}
    assert kinds["the first product"] == ["Conv"]
    assert kinds["the first product and what follows"] == ["Conv", "HardSwish"]
    assert kinds["depthwise convolutions"] == ["Conv"]
    assert kinds["Conv 1x1 to 8x8"] == ["Conv"]
    assert "Conv 3x3 depthwise to 8x8" not in kinds, "it is the group of depthwise convolutions"
    assert len(set(groups.values())) == len(groups)


class Machine:
    """A clock by a table: a file's seconds are 1, and what each float unit adds to it.

    The float file takes `whole` seconds. To write a file and to open it takes some, too.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        noise: float = 0.01,
        whole: float = 2.0,
        writing: float = 0.0,
        opening: float = 0.0,
    ) -> None:
        self.costs, self.noise, self.whole = costs, noise, whole
        self.writing, self.opening = writing, opening
        self.random = np.random.default_rng(0)
        self.asked: list[set[str]] = []
        self.time = 0.0

    def write(self, floats: frozenset[str]) -> bytes:
        self.time += self.writing
        return ",".join(sorted(floats)).encode()

    def __call__(
        self, files: Mapping[str, bytes], seconds: float, took: Mapping[str, float]
    ) -> Compared:
        timing = seconds + self.opening * len(files)
        self.time += timing
        self.asked.append(set(files))
        found = {
            name: self.cost(set(content.decode().split(","))) * self.noises()
            for name, content in files.items()
        }
        return Compared(found, {**took, TIMING: timing})

    def noises(self) -> np.ndarray:
        return np.exp(self.noise * self.random.standard_normal(40))

    def cost(self, floats: set[str]) -> float:
        if floats == {"float"}:
            return self.whole
        return 1 + sum(self.costs.get(one, 0) for one in floats)

    def now(self) -> float:
        return self.time


def run(
    machine: Machine, found: Mapping[str, Unit], seconds: float = 60, ready: float = 0.0
) -> Placement:
    return search(found, machine.write, b"float", machine, seconds, ready, machine.now)


def of_kind(found: Mapping[str, Unit], kind: str, depthwise: bool = False) -> str:
    [name, *_] = [n for n, u in found.items() if u.kind == kind and (u.groups > 1) == depthwise]
    return name


def test_what_is_faster_as_float_stays_float(found):
    deep, gemm = of_kind(found, "Conv", depthwise=True), of_kind(found, "Gemm")
    machine = Machine({deep: -0.2, gemm: 0.3})
    placement = run(machine, found)
    assert placement.floats == {deep}
    assert placement.gain == pytest.approx(1 / 0.8, rel=0.02)
    assert placement.speedup == pytest.approx(2 / 0.8, rel=0.03)
    assert placement.complete


def test_two_groups_that_gain_stay_float_together(found):
    deep, gemm = of_kind(found, "Conv", depthwise=True), of_kind(found, "Gemm")
    placement = run(Machine({deep: -0.2, gemm: -0.1}), found)
    assert placement.floats == {deep, gemm}
    assert placement.gain == pytest.approx(1 / 0.7, rel=0.02)


def test_of_large_files_few_are_held_at_once(found, monkeypatch):
    deep, gemm = of_kind(found, "Conv", depthwise=True), of_kind(found, "Gemm")
    few, many = Machine({deep: -0.2, gemm: -0.1}), Machine({deep: -0.2, gemm: -0.1})
    run(many, found)
    monkeypatch.setattr(room, "HELD", 3 * len(b"float"))
    assert run(few, found).floats == {deep, gemm}
    assert max(map(len, few.asked)) == 3
    assert 4 < max(map(len, many.asked)) <= 9


def test_of_large_files_every_wider_group_is_tried(monkeypatch):
    module = deploy_models.randomized(Shrinking())
    model = rewritten(parsed(export(Model(module, (torch.zeros(1, 3, 16, 16),)))))
    found = placed(list(units(model.graph)))
    group = alike(found)["all down to 4x4"]

    class Whole(Machine):
        def cost(self, floats: set[str]) -> float:
            return super().cost(floats) / (2 if floats == group else 1)

    for held in (1, 1e9):
        monkeypatch.setattr(room, "HELD", held)
        assert run(Whole({}, 0.001), found).floats == group


def test_noise_alone_moves_nothing(found):
    for noise in (0.001, 0.2):
        placement = run(Machine({}, noise), found)
        assert placement.floats == frozenset()
        assert placement.gain == 1


class Shrinking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 8, 8, 8, 8, 8, 8]
        self.body = nn.Sequential(
            *(
                nn.Conv2d(a, b, 3, 1 + number % 2, 1)
                for number, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_a_beginning_stays_float_as_far_as_that_pays():
    """Where every border costs, no group alone gains."""
    module = deploy_models.randomized(Shrinking())
    model = rewritten(parsed(export(Model(module, (torch.zeros(1, 3, 16, 16),)))))
    found = placed(list(units(model.graph)))
    order = list(found)

    class Borders(Machine):
        def cost(self, floats: set[str]) -> float:
            inside = [one in floats for one in order]
            borders = sum(a != b for a, b in pairwise(inside))
            gains = sum(0.1 if number < 4 else -0.05 for number in np.flatnonzero(inside))
            return super().cost(floats) + 0.1 * borders - gains

    kinds = alike(found)
    assert [words for words in kinds if words.startswith("all down")] == [
        "all down to 8x8",
        "all down to 4x4",
    ]
    placement = run(Borders({}, 0.001), found)
    assert placement.floats == set(order[:4])
    assert placement.gain == pytest.approx(1 / 0.7, rel=0.01)


def test_a_noisy_trial_is_made_again_for_longer(found):
    deep = of_kind(found, "Conv", depthwise=True)

    class Disturbed(Machine):
        def __call__(
            self, files: Mapping[str, bytes], seconds: float, took: Mapping[str, float]
        ) -> Compared:
            self.noise = 0.5 if len(self.asked) == 1 else 0.01
            return super().__call__(files, seconds, took)

    machine = Disturbed({deep: -0.2})
    assert run(machine, found).floats == {deep}
    assert machine.asked[0] == {NOW, FLOAT}
    assert machine.asked[1] == machine.asked[2]


def test_the_first_comparison_is_made_in_any_case(found):
    machine = Machine(dict.fromkeys(found, -0.05))
    placement = run(machine, found, seconds=1e-9)
    assert not placement.complete
    assert machine.asked == [{NOW, FLOAT}]
    assert placement.speedup == pytest.approx(2, rel=0.02)
    assert run(Machine({}, whole=0.8), found, seconds=1e-9).all_float


@pytest.mark.parametrize("noise", [0.01, 0.3])
@pytest.mark.parametrize("seconds", [0.3, 0.7, 3, 10, 60])
@pytest.mark.parametrize(("writing", "opening"), [(0, 0), (0.02, 0.1), (0.5, 2.0)])
def test_no_comparison_begins_that_would_not_end_in_time(
    found, noise: float, seconds: float, writing: float, opening: float
):
    """Apart from the first, before which nothing is known. What it took before counts as well."""
    deep, gemm = of_kind(found, "Conv", depthwise=True), of_kind(found, "Gemm")
    costs = {deep: -0.2, gemm: -0.1}
    machine = Machine(costs, noise, writing=writing, opening=opening)
    placement = run(machine, found, seconds, ready=0.05 * seconds)
    if len(machine.asked) > 1:
        assert machine.time + 0.05 * seconds <= 1.1 * seconds
    assert placement.seconds == pytest.approx(machine.time + 0.05 * seconds)
    if seconds == 60 and not opening:
        assert placement.complete


def test_kept_answers_take_the_time_that_they_took(found):
    """With them a search ends where the first did, and one that was interrupted goes on there."""
    deep, gemm = of_kind(found, "Conv", depthwise=True), of_kind(found, "Gemm")

    class Kept(Machine):
        """A clock whose answers are kept: those take no time."""

        def __init__(self, ends: int = 1000) -> None:
            super().__init__({deep: -0.2, gemm: -0.1})
            self.kept: dict[object, Compared] = {}
            self.ends = ends

        def __call__(
            self, files: Mapping[str, bytes], seconds: float, took: Mapping[str, float]
        ) -> Compared:
            key = (tuple(sorted(files.items())), seconds)
            if key not in self.kept:
                if len(self.kept) == self.ends:
                    raise KeyboardInterrupt
                self.kept[key] = super().__call__(files, seconds, took)
            return self.kept[key]

    for seconds in (0.3, 1.2, 2.5, 60):
        whole, cut = Kept(), Kept(ends=1)
        first = run(whole, found, seconds)
        assert run(whole, found, seconds) == first
        with contextlib.suppress(KeyboardInterrupt):
            run(cut, found, seconds)
        cut.ends = 1000
        assert run(cut, found, seconds).floats == first.floats
        assert cut.time == pytest.approx(whole.time)


def test_where_float_is_faster_everything_is_float(found):
    placement = run(Machine({}, whole=0.8), found)
    assert placement.all_float
    assert placement.floats == frozenset(found)
    assert placement.speedup == 1
    assert placement.best == pytest.approx(0.8, rel=0.02)
    assert placement.complete


def test_what_gains_as_int8_in_the_float_file_is_int8(found):
    """One kernel alone gains as int8, and each of the others loses more."""
    gemm = of_kind(found, "Gemm")

    class Gemm(Machine):
        def cost(self, floats: set[str]) -> float:
            if floats == {"float"}:
                return 1.0
            inside = set(found) - floats
            return 1 + 0.2 * len(inside - {gemm}) - 0.3 * (gemm in inside)

    placement = run(Gemm({}), found)
    assert not placement.all_float
    assert set(found) - placement.floats == {gemm}
    assert placement.speedup == pytest.approx(1 / 0.7, rel=0.02)


def test_what_is_hardly_slower_is_seen_beside_float_once_more(found):
    """0.99 times as fast is no place to begin from the float file, but none to end at, either."""
    machine = Machine({}, 0.002, whole=0.99)
    placement = run(machine, found)
    assert machine.asked.count({NOW, FLOAT}) == 2
    assert placement.all_float
    assert not run(Machine({}, 0.05, whole=0.995), found).all_float, "that may be noise"


def test_a_float_file_that_cannot_be_timed_leaves_the_speed_unknown(found):
    class Without(Machine):
        def __call__(
            self, files: Mapping[str, bytes], seconds: float, took: Mapping[str, float]
        ) -> Compared:
            measured = super().__call__(files, seconds, took)
            times = {name: one for name, one in measured.times.items() if name != FLOAT}
            return Compared(times, measured.took)

    deep = of_kind(found, "Conv", depthwise=True)
    placement = run(Without({deep: -0.2}), found)
    assert placement.floats == {deep}
    assert placement.speedup == 0


def test_files_are_timed_for_real(model):
    images = deploy_models.images(4, 0)
    asked = []

    def clock(files: Mapping[str, bytes], seconds: float, took: Mapping[str, float]) -> Compared:
        measured = seconds_of({**files, "broken": b"no file"}, [images.numpy()], 0.05)
        assert measured.keys() == files.keys()
        assert all((one > 0).all() and len(one) >= 7 for one in measured.values())
        asked.append(len(files))
        return Compared(measured, {**took, TIMING: 0.05})

    placement = fastest(model, [(images,)], 1.0, clock)
    assert asked
    assert placement.trials >= len(asked) - 1
    assert placement.speedup > 0
