"""A teacher of another spec sees the files as it decodes them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import images
from own_sight import (
    CHAIN,
    LEVELS,
    NET,
    OWN,
    by_torchvision,
    context_of,
    equal,
    files_of,
    planned,
    readers,
    recorded,
)
from safetensors.torch import save_file

from compress.benchmark.execute.run_spec import Limits, spec_of
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite
from compress.compressor import run
from compress.errors import UserError
from compress.model import identity
from compress.system.pixel_cache import cached_sets
from compress.tasks.base import Subset
from compress.tasks.preprocessing import Settings
from compress.techniques import chain
from compress.techniques.teachers import Teacher
from compress.zoo import image_files
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained


def test_a_teacher_gets_what_its_own_spec_makes_of_the_file(photos: Path) -> None:
    plan = planned(photos, **OWN, **LEVELS)
    expected = torch.stack([by_torchvision(path) for path in files_of(plan.data.train)])
    model, got = recorded(plan.teachers["big"])
    step = chain(CHAIN + ", views=0)")
    run(step, plan.start, replace(context_of(plan), models={"big": model}))
    batches = [batch for batch in got if len(batch) > 1][-6:]  # two epochs of three batches
    seen = torch.cat(batches)
    assert len(seen) >= 2 * len(expected) - 1
    equals = (seen[:, None] == expected[None]).flatten(2).all(2)
    assert equals.any(1).all(), "not a level of any pixel differs"
    assert equals.any(0).all(), "every file was seen"
    assert plan.weights["teacher 'big'"].startswith(
        "sees shorter side to 30, bicubic, centre 24x24, mean 0.4/0.5/0.6, std 0.2/0.3/0.4, "
        "decoded for it; "
    )
    assert plan.teachers["big"].probe[0].shape == (4, 3, 24, 24)


@pytest.mark.parametrize(
    ("keys", "own"),
    [
        ({}, False),
        (LEVELS, False),
        ({"size": 16, "resize": "shorter", "interpolation": "bilinear", "exif": False}, False),
        ({"size": 24}, True),
        ({"resize": "exact"}, True),
        ({"crop_pct": 0.5}, True),
        ({"interpolation": "nearest"}, True),
        ({"antialias": False}, True),
        ({"exif": True}, True),
    ],
)
def test_only_another_spatial_spec_is_decoded_for(
    keys: dict[str, Any], own: bool, photos: Path
) -> None:
    plan = planned(photos, **keys)
    teacher = plan.teachers["big"]
    assert (teacher.sight is not None) == own
    assert (identity(teacher) != identity(planned(photos).teachers["big"])) == (
        own or "mean" in keys
    )
    steps = [make_graph(one).chain_runs[1].nodes[1].key for one in (plan, planned(photos))]
    assert (steps[0] != steps[1]) == (own or "mean" in keys)


def test_a_teacher_of_the_students_spec_costs_and_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for number, keys in enumerate(({}, {"size": 16, "interpolation": "bilinear"})):
        plan = planned(photos, "flip-crop", **keys)
        decoded: list[Path] = []

        def decode(
            path: Path, *rest: Any, known: list[Path] = decoded, real: Any = image_files.decode
        ) -> np.ndarray:
            known.append(path)
            return real(path, *rest)

        spec = spec_of(plan, "s", tmp_path / str(number), tmp_path / "private", limits=Limits())
        assert spec.keep_pixels(plan) == ""
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "decode", decode)
            results.append(run(chain(CHAIN + ")"), plan.start, context_of(plan)))
        assert (
            len(decoded)
            == len(set(decoded))
            == len(files_of(plan.data.train)) + len(files_of(plan.data.validation))
        )
        assert len(list(cached_sets(tmp_path / str(number)))) == 2, "of train and of test"
    assert equal(*results)


def test_another_spec_has_a_set_of_pixels_of_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, **OWN)
    spec = spec_of(plan, "s", tmp_path / "store", tmp_path / "private", limits=Limits())
    assert spec.keep_pixels(plan) == ""
    sets = list(cached_sets(tmp_path / "store"))
    assert sorted(path.stat().st_size for path in sets) == [3 * 12 * s**2 for s in (16, 16, 24)]
    _, own = readers(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=70_000))
    full = spec_of(plan, "s", tmp_path / "full", tmp_path / "private", limits=Limits())
    assert full.keep_pixels(planned(photos, **OWN)) == (
        "12 of 12 images of 24x24 are decoded anew whenever they are used: they take 20.7 kB, "
        "others there have 18.4 kB to come, and 70 kB is free there"
    )
    monkeypatch.undo()
    # What the user allows: 3 * 12 * (16² + 16² + 24²) bytes are needed.
    few = spec_of(plan, "s", tmp_path / "few", tmp_path / "private", limits=Limits(pixels=39_000))
    assert few.keep_pixels(planned(photos, **OWN)) == (
        "12 of 12 images of 24x24 are decoded anew whenever they are used: they take 20.7 kB, "
        "others there 18.4 kB, and the pixel cache may take 39 kB"
    )
    first = own.inputs(torch.arange(4), 0)[0]
    again = planned(photos, **OWN)
    spec.keep_pixels(again)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "decode", None)  # all that is asked for was kept
        assert torch.equal(readers(again)[1].inputs(torch.arange(4), 0)[0], first)
    # Another limit holds for splits that are kept already, and for what is made of them later.
    none = spec_of(plan, "s", tmp_path / "store", tmp_path / "private", limits=Limits(pixels=0))
    assert none.keep_pixels(plan).count("the pixel cache may take 0 B") == 2
    assert plan.data.train.whole.pixels is None


def test_pixels_are_kept_for_the_teachers_that_chains_name(photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, **OWN)
    idle = replace(plan, rows=[row for row in plan.rows if row.chain is None])
    spec = spec_of(idle, "s", tmp_path / "store", tmp_path / "private", limits=Limits())
    assert spec.keep_pixels(idle) == ""
    assert len(list(cached_sets(tmp_path / "store"))) == 2


def test_a_teacher_whose_images_had_their_size_gets_them_resized_to_it(photos: Path) -> None:
    """Also where that is the student's size: 'none' is what is known of it, and asked by no one."""
    plan = planned(photos)
    splits, task = (plan.data.train, plan.data.validation), plan.data.task
    for side in (16, 20):
        usual = Settings(size=(side, side), resize="none")
        sight = task.sight(Settings(), usual, splits)
        assert sight is not None
        assert sight.words.startswith(f"both sides to {side}x{side}, bilinear, mean")
        assert sight.of(plan.data.train).fetch(torch.arange(2))[0][0].shape == (2, 3, side, side)


def test_a_library_resizes_with_antialiasing_whatever_the_run_does(photos: Path) -> None:
    plan = planned(photos)
    preprocessing = plan.data.task.preprocessing  # type: ignore[attr-defined]
    rough = replace(preprocessing, fit=replace(preprocessing.fit, antialias=False))
    task = replace(plan.data.task, preprocessing=rough)  # type: ignore[type-var]
    known = pretrained("torchvision:resnet18", "DEFAULT")
    assert known is not None
    sight = task.sight(Settings(size=(24, 24)), known.settings, (plan.data.train,))
    assert sight is not None
    assert sight.task.preprocessing.fit.antialias  # type: ignore[attr-defined]


def test_items_that_are_not_the_same_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, **OWN)
    whole = Subset.remade
    monkeypatch.setattr(
        Subset, "remade", lambda self, how: Subset(whole(self, how), torch.arange(3))
    )
    with pytest.raises(UserError, match=r"Subset.remade.. gives 3 items where there are \d+"):
        Teacher([plan.teachers["big"]], context_of(plan), "logits", (), plan.data.train)


def test_a_teachers_padding_is_its_own_mean(photos: Path) -> None:
    keys = {"size": 24, "resize": "longer", "colors": "BGR", "mean": (0.2, 0.5, 0.8)}
    plan = planned(photos, **keys, std=(0.2, 0.3, 0.4))
    [seen] = readers(plan)[1].inputs(torch.arange(4), 0)
    half_a_level = 0.5 / 255 / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1) + 1e-6
    assert (seen[:, :, [0, 3, 20, 23]].abs() <= half_a_level).all()
    assert (seen[:, :, 4:20].abs() > half_a_level).any()


def test_what_cannot_be_had_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher 'big': without antialiasing, interpolation is"):
        planned(photos, antialias=False, interpolation="lanczos")
    with pytest.raises(UserError, match=r"(?s)12 of 12 .*'none':.*: 20x30 pixels, not 24x24\n"):
        planned(photos, size=24, resize="none")
    with pytest.raises(UserError, match=r"teacher 'big': colors is L, and the images have 3"):
        planned(photos, colors="L")
    weights = tmp_path / "w.safetensors"
    save_file(fresh(NET, images(8, 1, 10)).module.state_dict(), weights)
    for keys, message in {
        ("crop_pct",): "teacher 'big': crop_pct: digits has no image files",
        ("resize", "exif"): "teacher 'big': resize, exif: digits has no image files",
    }.items():
        values: dict[str, Any] = {"crop_pct": 0.9, "resize": "exact", "exif": False}
        teacher = NamedTeacher(NET, str(weights), **{key: values[key] for key in keys})
        suite = Suite("s", "digits", NET, ("train()",), teachers={"big": teacher})
        with pytest.raises(UserError, match=message):
            make_plan(suite, device="cpu")
