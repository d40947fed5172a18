"""What runs and libraries say of weights: from the files beside them, and from their names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import build, images
from photo_folders import folder_of_photos
from safetensors.torch import save_file

import compress
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Named, NamedTeacher, Suite
from compress.errors import UserError
from compress.model import save
from compress.tasks.preprocessing import Settings
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained, seen_otherwise

MODEL = "resnet8(width=2)"
SPEC: dict[str, Any] = {
    "size": 24,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "exif": True,
}


def written(folder: Path, data: compress.Data) -> Path:
    """Weights as a run writes them."""
    save(fresh(MODEL, data.task), folder, build, {"task": data.task.describe()})
    return folder / "model.safetensors"


def photos(folder: Path) -> str:
    return f"imagefolder:{folder_of_photos(folder / 'photos')}"


def planned(data: str, weights: Path | None = None, **keys: Any) -> Any:
    baseline = None if weights else "train(epochs=1)"
    suite = Suite("s", data, MODEL, ("quantize()",), weights and str(weights), baseline)
    return make_plan(replace(suite, **keys))


def test_weights_of_a_run_are_fed_as_they_were_there(tmp_path: Path) -> None:
    source = photos(tmp_path)
    first = compress.load_data(source, **SPEC)
    weights = written(tmp_path / "run", first)
    for options in ({}, {"size": 24}):
        task = planned(source, weights, options=options).data.task
        assert task.preprocessing == first.task.preprocessing
        words = "as the run that wrote model.safetensors used it"
        assert words in task.input_words()
    task = planned(source, weights, options={"interpolation": "bilinear"}).data.task
    assert task.preprocessing.fit.interpolation == "bilinear"
    assert task.preprocessing.mean == (0.5,) * 3
    assert "interpolation as given" in task.input_words()
    chain = ("train(epochs=1) -> distill(teacher='t', student='s', epochs=1)",)
    plan = planned(
        source,
        chains=chain,
        teachers={"t": NamedTeacher(MODEL, str(weights))},
        students={"s": Named(MODEL, str(weights))},
    )
    assert plan.weights["teacher 't'"].startswith(
        "sees shorter side to 26, bicubic, centre 24x24, turned as EXIF says, mean 0.5, std 0.5, "
        "decoded for it; "
    )
    assert plan.teachers["t"].sight.task.preprocessing == first.task.preprocessing
    teachers = {"t": NamedTeacher(MODEL, str(weights))}
    levels = {"scale": 1.0, "mean": (128.0,) * 3, "std": (64.0,) * 3}
    scaled = planned(source, teachers=teachers, options=levels)
    assert scaled.teachers["t"].sight.task.preprocessing == first.task.preprocessing
    said = plan.weights["student 's'"]
    assert said.startswith("sees shorter side to 224, bilinear, centre 224x224, mean 0.485/")
    assert "was trained with shorter side to 26, bicubic, centre 24x24, turned as EXIF" in said


def test_a_library_student_that_sees_other_inputs_is_told_apart(tmp_path: Path) -> None:
    name = "torchvision:squeezenet1_1"
    path = tmp_path / "mine.safetensors"
    save_file(fresh(name, images(64, classes=1000)).module.state_dict(), path)
    known = pretrained(name, str(path))
    assert known is not None
    assert "sees 64x64, mean 0.5, std 0.2, and was trained with 224x224" in seen_otherwise(
        known, images(64)
    )
    same = replace(known, settings=Settings(mean=(0.5,) * 3, std=(0.2,) * 3, size=(64, 64)))
    assert not seen_otherwise(same, images(64))
    bright = replace(same, settings=replace(same.settings, mean=(128.0,) * 3))
    with pytest.raises(
        UserError, match=r"own preprocessing \(as .*\): mean is 128, and levels times"
    ):
        seen_otherwise(bright, images(64))


def test_weights_of_a_run_on_arrays_come_to_its_size(tmp_path: Path) -> None:
    first = compress.load_data("digits", size=6, mean=(0.25,), std=(0.5,), crop_pct=0.8)
    weights = written(tmp_path / "run", first)
    again = planned("digits", weights).data.task
    assert again.describe() == first.task.describe()
    given = compress.load_data("digits")
    suite = Suite("s", "x", MODEL, ("quantize()",), str(weights))
    said = make_plan(suite, data=given).weights[""]
    assert "sees 8x8, mean" in said
    assert "was trained with 6x6, mean 0.25, std 0.5" in said
    colored = {f"x_{part}": np.zeros((40, 8, 8, 3), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(40) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "own.npz", **colored, **labels)
    name = f"arrays:{tmp_path / 'own.npz'}"
    with pytest.raises(UserError, match=r"of images of 1 channel\(s\), and .* has images of 3"):
        compress.load_data(name, usual=Settings(mean=(0.5,), std=(0.5,)), usual_from="it")


def test_what_stands_beside_weights_is_checked(tmp_path: Path) -> None:
    source = photos(tmp_path)
    weights = written(tmp_path / "run", compress.load_data(source, **SPEC))
    place = weights.parent / "blueprint.json"
    whole = json.loads(place.read_text())
    task = whole["about"]["task"]

    def with_task(**keys: Any) -> str:
        return json.dumps({**whole, "about": {"task": {**task, **keys}}})

    preprocessing = task["preprocessing"]
    for text in (
        "{",
        "[" * 100_000,
        with_task(preprocessing={}),
        with_task(preprocessing={**preprocessing, "mean": ["__import__('os')"] * 3}),
        with_task(preprocessing={**preprocessing, "resize": {"mode": "crop", "to": [0, 0]}}),
        json.dumps({**whole, "shapes": {"other": [1]}}),
        json.dumps({**whole, "about": 3}),
    ):
        place.write_text(text)
        with pytest.raises(UserError, match=r"blueprint\.json should say how .* is damaged or of"):
            pretrained(MODEL, str(weights))
    for foreign in ("[]", '{"name": "of another tool"}', json.dumps({**whole, "about": {}})):
        place.write_text(foreign)
        assert pretrained(MODEL, str(weights)) is None


def test_a_name_without_torchvisions_hash_promises_nothing(tmp_path: Path) -> None:
    name = "torchvision:resnet50"
    state = {"fc.bias": torch.zeros(1000)}
    for stem, accuracy in (("resnet50-0676ba61", 0.7613), ("resnet50", None)):
        torch.save({"state_dict": state}, tmp_path / f"{stem}.pth")
        known = pretrained(name, f"{tmp_path / stem}.pth:state_dict")
        assert known is not None
        assert known.accuracy == (accuracy and pytest.approx(accuracy, abs=1e-3))
    assert known.origin == (
        "torchvision's usual for resnet50, which is assumed: the file's name is none of its"
    )
    assert known.settings.to == (232, 232), "of DEFAULT"


def test_torchvisions_own_files_have_the_module_rescale_its_inputs(tmp_path: Path) -> None:
    name = "torchvision:googlenet"
    task = images(64, classes=1000)
    torch.manual_seed(0)
    module = fresh(name, task).module
    file = tmp_path / "googlenet-1378be20.pth"
    torch.save(module.state_dict(), file)
    suite = Suite("s", "x", name, ("quantize()",), str(file))
    pixels = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8).numpy()
    labels = torch.arange(40).numpy() % 1000
    classes = [str(number) for number in range(1000)]
    data = compress.from_arrays(pixels, labels, pixels, labels, classes=classes)
    assert make_plan(suite, data=data).start.module.transform_input is True
    assert not module.transform_input


def test_timms_weights_without_a_head_are_known_from_a_file_without_one(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs timm")
    name, path = "timm:vit_small_patch14_dinov2", tmp_path / "dino.safetensors"
    save_file({"norm.bias": torch.zeros(384)}, path)
    known = pretrained(name, str(path))
    assert known is not None
    assert known.settings.size == (518, 518)
    save_file({"head.bias": torch.zeros(10)}, path)
    assert pretrained(name, str(path)) is None


def test_what_is_known_is_of_the_set_that_is_taken(tmp_path: Path) -> None:
    """Beside a net of ImageNet's classes, or one that only has as many outputs somewhere."""
    name = "torchvision:squeezenet1_1"
    own = fresh(name, images(64, classes=1000)).module.state_dict()
    many = {f"layer{number}.weight": torch.zeros(1000, 1) for number in range(90)}
    torch.save({"net": own, "aux": many}, tmp_path / "a.pth")
    known = pretrained(name, str(tmp_path / "a.pth"))
    assert known is not None
    assert known.classes == 1000
    few = fresh(name, images(64, classes=7)).module.state_dict()
    torch.save({"student": few, "teacher": many}, tmp_path / "b.pth")
    assert pretrained(name, str(tmp_path / "b.pth")) is None


def test_weights_for_other_classes_are_assumed_to_see_files_as_the_librarys(tmp_path: Path) -> None:
    name, path = "torchvision:squeezenet1_1", tmp_path / "mine.pth"
    source = photos(tmp_path)
    classes = len(compress.load_data(source).task.classes)
    torch.save(fresh(name, images(64, classes=classes)).module.state_dict(), path)
    suite = Suite("s", source, name, ("quantize()",), str(path))
    said = make_plan(suite).data.task.input_words()
    assert "shorter side to 256, bilinear, centre 224x224" in said
    words = "torchvision's usual for squeezenet1_1, which is assumed: the file has another head"
    assert words in said


def test_which_of_timms_weights_a_file_has_is_assumed_or_known_by_its_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    known = Path(timm.get_pretrained_cfg("resnet18.tv_in1k").url).name
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, tmp_path / "mine.pth")
    torch.save(state, tmp_path / known)
    for model, file, interpolation, said in (
        ("resnet18", "mine.pth", "bicubic", "timm's resnet18.a1_in1k, which is assumed"),
        ("resnet18", known, "bilinear", "timm's resnet18.tv_in1k"),
        ("resnet18.tv_in1k", "mine.pth", "bilinear", "timm's resnet18.tv_in1k"),
    ):
        found = pretrained(f"timm:{model}", str(tmp_path / file))
        assert found is not None
        assert found.settings.interpolation == interpolation
        assert found.origin.startswith(said)
        assert ("assumed" in found.origin) == ("assumed" in said)


def test_ones_own_weights_have_no_inputs_rescaled(tmp_path: Path) -> None:
    name = "torchvision:googlenet"
    torch.save(fresh(name, images(64, classes=1000)).module.state_dict(), tmp_path / "mine.pth")
    known = pretrained(name, str(tmp_path / "mine.pth"))
    assert known is not None
    assert not known.transform_input
