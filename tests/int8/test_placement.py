"""Placement by measuring: with clocks that say what is right."""

from __future__ import annotations

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
from compress.int8.placement import FLOAT, NOW, alike, search
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
    """A clock by a table: a file's seconds are 1, and what each float unit adds to it."""

    def __init__(self, costs: Mapping[str, float], noise: float = 0.01) -> None:
        self.costs, self.noise = costs, noise
        self.random = np.random.default_rng(0)
        self.asked: list[set[str]] = []
        self.time = 0.0

    def write(self, floats: frozenset[str]) -> bytes:
        return ",".join(sorted(floats)).encode()

    def __call__(self, files: Mapping[str, bytes], seconds: float) -> Mapping[str, np.ndarray]:
        self.time += seconds
        self.asked.append(set(files))
        found = {}
        for name, content in files.items():
            if name == FLOAT:
                cost = 2.0
            else:
                cost = 1 + sum(self.costs.get(one, 0) for one in content.decode().split(","))
            found[name] = cost * np.exp(self.noise * self.random.standard_normal(40))
        return found

    def now(self) -> float:
        return self.time


def run(machine: Machine, found: Mapping[str, Unit], seconds: float = 60) -> object:
    return search(found, machine.write, b"float", machine, seconds, machine.now)


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
    assert max(len(files - {FLOAT}) for files in few.asked) == 3
    assert max(len(files) for files in many.asked) > 4


def test_of_large_files_every_wider_group_is_tried(monkeypatch):
    module = deploy_models.randomized(Shrinking())
    model = rewritten(parsed(export(Model(module, (torch.zeros(1, 3, 16, 16),)))))
    found = placed(list(units(model.graph)))
    group = alike(found)["all down to 4x4"]

    class Whole(Machine):
        def __call__(self, files: Mapping[str, bytes], seconds: float) -> Mapping[str, np.ndarray]:
            measured = dict(super().__call__(files, seconds))
            for name, content in files.items():
                if set(content.decode().split(",")) == set(group):
                    measured[name] = measured[name] / 2
            return measured

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
        def __call__(self, files: Mapping[str, bytes], seconds: float) -> Mapping[str, np.ndarray]:
            measured = dict(super().__call__(files, seconds))
            for name, content in files.items():
                floats = [one in content.decode().split(",") for one in order]
                borders = sum(a != b for a, b in pairwise(floats))
                gains = sum(0.1 if number < 4 else -0.05 for number in np.flatnonzero(floats))
                measured[name] = measured[name] + 0.1 * borders - gains
            return measured

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
        def __call__(self, files: Mapping[str, bytes], seconds: float) -> Mapping[str, np.ndarray]:
            self.noise = 0.01 if self.asked else 0.5
            return super().__call__(files, seconds)

    machine = Disturbed({deep: -0.2})
    assert run(machine, found).floats == {deep}
    assert machine.asked[0] - {FLOAT} == machine.asked[1] - {FLOAT}


def test_a_search_keeps_to_its_seconds(found):
    machine = Machine(dict.fromkeys(found, -0.05))
    placement = run(machine, found, seconds=1e-9)
    assert not placement.complete
    assert len(machine.asked) == 1, "the wider groups"
    assert NOW in machine.asked[0]
    assert FLOAT in machine.asked[0]


def test_files_are_timed_for_real(model):
    images = deploy_models.images(4, 0)
    asked = []

    def clock(files: Mapping[str, bytes], seconds: float) -> Mapping[str, np.ndarray]:
        measured = seconds_of({**files, "broken": b"no file"}, [images.numpy()], 0.05)
        assert measured.keys() == files.keys()
        assert all((one > 0).all() and len(one) >= 7 for one in measured.values())
        asked.append(len(files))
        return measured

    placement = fastest(model, [(images,)], 1.0, clock)
    assert asked
    assert placement.trials >= len(asked)
    assert placement.speedup > 0
