"""Folders without training images, the order of classes, and another source for calibration."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import IllegalChain, UserError
from compress.zoo.data import load_data


def photos(folder: Path, names: dict[str, int]) -> Path:
    """Images of one gray level a class, so that pixels tell the class."""
    for level, (name, count) in enumerate(names.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (level,) * 3).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("place", ["val", "test", "validation", ""])
def test_a_part_drawn_by_path_serves_calibration_and_validation(tmp_path: Path, place: str) -> None:
    photos(tmp_path / "p" / place, {"a": 3, "b": 4, "c": 4, "d": 4, "e": 4})
    data = load_data(f"imagefolder:{tmp_path / 'p'}", size=8)
    held = len(data.validation)
    assert 0 < held < 10
    assert len(data.test) + held == 19
    assert len(data.calibration) == held
    assert f"{held} of its 19 images, drawn by their paths, serve calibration and" in data.note
    for split in (data.validation, data.test):
        (pixels,), labels = split.fetch(torch.arange(len(split)))
        assert (pixels[:, 0, 0, 0] == labels).all()
    suite = Suite("s", f"imagefolder:{tmp_path / 'p'}", "mlp", ("train()",), options={"size": 8})
    with pytest.raises(IllegalChain, match=r"trains, and .* has no training images, or too few"):
        make_plan(suite)


def test_two_folders_for_testing_are_taken_as_they_are(tmp_path: Path) -> None:
    photos(tmp_path / "val", {"a": 2, "b": 1})
    photos(tmp_path / "test", {"a": 2, "b": 2, "c": 1})
    data = load_data(f"imagefolder:{tmp_path}", size=8)
    assert (len(data.validation), len(data.calibration), len(data.test)) == (3, 3, 5)
    assert data.task.describe()["classes"] == ["a", "b", "c"]
    assert "its 'val' serves calibration and validation" in data.note


def test_classes_are_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    photos(tmp_path / "p" / "train", dict.fromkeys(names, 2))
    photos(tmp_path / "p" / "test", dict.fromkeys(names, 1))
    source = f"imagefolder:{tmp_path / 'p'}"
    data = load_data(source, size=8)
    assert data.task.describe()["classes"][:4] == ["0", "1", "10", "11"]
    assert "classes are numbers in the order of their text" in data.note
    data = load_data(source, size=8, class_order="number")
    (pixels,), labels = data.test.fetch(torch.arange(12))
    assert (pixels[:, 0, 0, 0] == labels).all(), "levels are in the order of numbers"
    assert "classes are numbers" not in data.note
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(reversed(names)) + "\n")
    data = load_data(source, size=8, class_order=str(listed))
    assert data.task.describe()["classes"] == names[::-1]
    listed.write_text("\n".join(names[1:]))
    with pytest.raises(UserError, match=r"does not list the folder's classes, each once: \['0'\]"):
        load_data(source, size=8, class_order=str(listed))
    with pytest.raises(UserError, match="text, number or a file of names"):
        load_data(source, size=8, class_order="numbers")
    with pytest.raises(UserError, match="class_order is for image folders"):
        load_data("digits", class_order="number")


def test_a_name_in_two_normal_forms_is_one_class(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    photos(tmp_path / "train", {composed: 3, "b": 3})
    photos(tmp_path / "test", {taken_apart: 1, "b": 1})
    data = load_data(f"imagefolder:{tmp_path}", size=8)
    assert data.task.describe()["classes"] == ["b", composed]
    assert len(data.test) == 2


def test_another_source_calibrates(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "val", {"a": 3, "b": 4})
    photos(tmp_path / "more", {"x": 5})
    suite = Suite(
        "s",
        f"imagefolder:{tmp_path / 'p'}",
        "mlp",
        ("quantize()",),
        calibration=f"imagefolder:{tmp_path / 'more'}",
        options={"size": 8},
    )
    data = load_data(suite.data, size=8)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    plan = make_plan(suite, model=module)
    assert len(plan.data.calibration) == 5
    assert plan.data.identity() != data.identity()
    assert plan.data.test_identity() == data.test_identity()
    assert "calibrated on images of imagefolder" in plan.data.note


def test_gray_and_bgr_images(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "train", {"a": 9, "b": 9})
    photos(tmp_path / "p" / "test", {"a": 2, "b": 2})
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    for path in (tmp_path / "p").rglob("*.png"):
        Image.fromarray(red).save(path)
    source = f"imagefolder:{tmp_path / 'p'}"
    gray = load_data(source, size=8, colors="L")
    assert gray.task.probe(2)[0].shape == (2, 1, 8, 8)
    assert gray.test.fetch(torch.arange(1))[0][0][0, 0, 0, 0] == 76  # 0.299 of 255
    blue = load_data(source, size=8, colors="BGR", mean=(0, 0, 0), std=(1, 1, 1))
    assert blue.task.probe(1)[0][0, :, 0, 0].tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="Did you mean 'RGB' or 'BGR'"):
        load_data(source, colors="BRG")
    with pytest.raises(UserError, match=r"unknown option 'sizes'\. Did you mean 'size'"):
        load_data(source, sizes=8)
    with pytest.raises(UserError, match="crop_pct must be from"):
        load_data(source, crop_pct=87.5)
    with pytest.raises(UserError, match="without antialiasing, interpolation is one of"):
        load_data(source, antialias=False, interpolation="lanczos")
