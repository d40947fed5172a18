"""Folders without training images, the order of classes, and another source for calibration."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import IllegalChain, UserError
from compress.system.files import sha256
from compress.tasks.preprocessing import Fit, Settings
from compress.zoo.data import load_data
from compress.zoo.folder import image_folder


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
    counts = f"no images for training, {held} for validation and calibration, {19 - held} for test"
    assert data.words().startswith(f"p: 5 classes (a, b, c, ...), {counts}")
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
    with pytest.raises(UserError, match=r"not list all of .* classes: 0 is missing in it"):
        load_data(source, size=8, class_order=str(listed))
    listed.write_text("\n".join([*names, "3"]))
    with pytest.raises(UserError, match="lists '3' twice"):
        load_data(source, size=8, class_order=str(listed))
    listed.write_text("\n".join([*names, "12"]))
    with pytest.raises(UserError, match="classes that the folder has no images of: 12"):
        load_data(source, size=8, class_order=str(listed))
    with pytest.raises(UserError, match="text, number or a file of names"):
        load_data(source, size=8, class_order="numbers")
    with pytest.raises(UserError, match="class_order is for image folders"):
        load_data("digits", class_order="number")


def test_images_for_testing_may_show_a_part_of_the_classes(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "val", {"b": 4, "d": 4})
    listed = tmp_path / "names.txt"
    listed.write_text("a\nb\nc\nd\n")
    data = load_data(f"imagefolder:{tmp_path / 'p'}", size=8, class_order=str(listed))
    assert data.task.classes == ("a", "b", "c", "d")
    splits = (data.test, data.calibration)
    labels = torch.cat([split.fetch(torch.arange(len(split)))[1] for split in splits])
    assert set(labels.tolist()) == {1, 3}
    assert "2 of 4 classes in" in data.note
    assert "have no images: a, c" in data.note


def test_the_order_of_numbers_is_said_where_it_is_another(tmp_path: Path) -> None:
    for place, names, said in (
        ("few", ["9", "10"], "10, 9 ("),
        ("from-one", [str(number) for number in range(1, 11)], "1, 10, 2, ... ("),
        ("padded", [f"{number:03}" for number in range(12)], ""),
        ("words", ["1", "10", "2", "x"], ""),
    ):
        photos(tmp_path / place / "train", dict.fromkeys(names, 2))
        photos(tmp_path / place / "test", dict.fromkeys(names, 1))
        note = load_data(f"imagefolder:{tmp_path / place}", size=8).note
        assert note.partition("as torchvision reads them: ")[2].startswith(said)
        assert ("in the order of their text" in note) == bool(said)


def test_a_file_of_names_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "val", {"a": 4, "é": 4})
    listed = tmp_path / "names.txt"
    listed.write_text("é\na\n", "utf-8-sig")
    data = load_data(f"imagefolder:{tmp_path / 'p'}", size=8, class_order=str(listed))
    assert data.task.classes == ("é", "a")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "TEST"),
        ("training", "valid", "evaluation"),
        ("train", "Validation", "eval"),
    ],
)
def test_splits_have_the_usual_names_in_any_case(
    train: str, val: str, test: str, tmp_path: Path
) -> None:
    for place, count in ((train, 4), (val, 3), (test, 2)):
        photos(tmp_path / place, {"a": count, "b": count})
    (tmp_path / "annotations").mkdir()
    data = load_data(f"imagefolder:{tmp_path}", size=8)
    assert data.task.classes == ("a", "b")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8, 6, 4]
    assert "folders beside its splits are not used: annotations" in data.note
    photos(tmp_path / "testing", {"a": 1})
    with pytest.raises(UserError, match=rf"has both '{test}' and 'testing', which are names of"):
        load_data(f"imagefolder:{tmp_path}", size=8)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    photos(tmp_path, {"testing": 10, "valid": 10, "other": 10})
    assert load_data(f"imagefolder:{tmp_path}", size=8).task.classes == (
        "other",
        "testing",
        "valid",
    )


def drawn(folder: Path, counts: dict[str, int]) -> tuple[set[str], set[str], str]:
    """Return the images for training (or held) and for testing of a flat folder, and its note."""
    photos(folder, counts)
    source = image_folder(folder, Fit((8, 8), (8, 8)))
    parts = (source.train.files, source.test.files)  # type: ignore[attr-defined]
    train, test = ({path.relative_to(folder).as_posix() for path in part} for part in parts)
    assert len(train) + len(test) == sum(counts.values())
    return train, test, source.note


def test_every_class_of_a_flat_folder_keeps_an_image_for_training(tmp_path: Path) -> None:
    def one_in_five(name: str) -> bool:
        return int(sha256(name.encode())[:8], 16) % 5 == 0

    lone = next(name for name in map("c{}".format, range(99)) if one_in_five(f"{name}/0.png"))
    pair = next(
        name
        for name in map("d{}".format, range(999))
        if one_in_five(f"{name}/0.png") and one_in_five(f"{name}/1.png")
    )
    train, test, note = drawn(tmp_path / "p", {"a": 40, "b": 40, lone: 1, pair: 2})
    assert f"{lone}/0.png" in train
    assert len({f"{pair}/0.png", f"{pair}/1.png"} & train) == 1
    large = {name for name in train | test if name[0] in "ab"}
    assert {name for name in test if name[0] in "ab"} == set(filter(one_in_five, large))
    assert f"1 of 4 classes have no images for testing, being small: {lone}" in note


@pytest.mark.parametrize("count", range(1, 9))
def test_of_a_tiny_folder_each_side_has_an_image(count: int, tmp_path: Path) -> None:
    for place in "xyz":
        train, test, _ = drawn(tmp_path / place, {f"{place}1": count, f"{place}2": count})
        assert train
        assert test


def test_an_empty_class_is_refused_where_it_would_be_trained(tmp_path: Path) -> None:
    photos(tmp_path / "flat", {"a": 20, "b": 0, "c": 20, "d": 0})
    with pytest.raises(UserError, match=r"class 'b' .* nor have d: remove its folder, or put imag"):
        load_data(f"imagefolder:{tmp_path / 'flat'}", size=8)
    photos(tmp_path / "p" / "val", {"a": 4, "b": 0, "c": 4})
    data = load_data(f"imagefolder:{tmp_path / 'p'}", size=8)
    assert data.task.classes == ("a", "b", "c")
    assert "classes without images keep their numbers: b" in data.note


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
    usual = load_data(source, size=8, colors="BGR").task
    assert "BGR, mean 0.406/0.456/0.485, std 0.225/0.224/0.229" in usual.input_words()
    plain = load_data(source, size=8).task
    torch.testing.assert_close(usual.probe(2)[0], plain.probe(2)[0].flip(1))
    library = Settings(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), colors="RGB")
    known = load_data(source, size=8, colors="BGR", usual=library, usual_from="a library's").task
    assert "BGR, mean 0.3/0.2/0.1, std 0.6/0.5/0.4" in known.input_words()
    own = load_data(source, size=8, colors="RGB", usual=replace(library, colors="BGR")).task
    assert "mean 0.3/0.2/0.1, std 0.6/0.5/0.4" in own.input_words()
    for colors in ("RGB", "BGR", "L"):
        padded = load_data(source, size=(8, 12), resize="longer", colors=colors).task.probe(2)[0]
        assert padded[..., [0, 1, 10, 11]].abs().max() < 0.5 / 255 / 0.22, "the usual mean fills"
    with pytest.raises(UserError, match="Did you mean 'RGB' or 'BGR'"):
        load_data(source, colors="BRG")
    with pytest.raises(UserError, match=r"unknown option 'sizes'\. Did you mean 'size'"):
        load_data(source, sizes=8)
    with pytest.raises(UserError, match="crop_pct must be from"):
        load_data(source, crop_pct=87.5)
    for part in ({}, {"mean": (0.0,) * 3}, {"std": (1.0,) * 3}):
        with pytest.raises(UserError, match="scale needs mean and std beside it"):
            load_data(source, size=8, scale=1.0, **part)
    levels = {"mean": (128.0,) * 3, "std": (64.0,) * 3}
    for resize in ("shorter", "longer"):
        with pytest.raises(UserError, match="mean is 128, and levels times scale are at most 1: "):
            load_data(source, size=(8, 9), resize=resize, **levels)
    assert load_data(source, size=8, scale=1.0, **levels).task.preprocessing.mean == (128.0,) * 3
    with pytest.raises(UserError, match="without antialiasing, interpolation is one of"):
        load_data(source, antialias=False, interpolation="lanczos")
