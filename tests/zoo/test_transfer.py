"""Transfer sets: images of any source brought to the task's size and colours, labelled or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import small_digits
from PIL import Image

from compress.errors import UserError
from compress.zoo.data import load_data
from compress.zoo.transfer import calibrated, fitted, load_transfer

DATA = small_digits()
DATA_WHOLE = load_data("digits")


def picture(path: Path, size: tuple[int, int] = (10, 12), level: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


def test_loose_images_have_no_labels(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / "photos" / f"{number}.png", level=40 * number)
    picture(tmp_path / "photos" / "more" / "deep.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    found = load_transfer(f"imagefolder:{tmp_path}/photos", DATA)
    assert not found.labelled
    assert len(found.items) == 6
    (images,), targets = found.items.fetch(torch.arange(6))
    assert images.shape == (6, 1, 8, 8), "the task's size and one channel"
    assert images.dtype == torch.uint8
    assert targets.tolist() == [0] * 6
    assert images[2].unique().tolist() == [80]
    before = found.fingerprint
    picture(tmp_path / "photos" / "9.png")
    assert load_transfer(f"imagefolder:{tmp_path}/photos", DATA).fingerprint != before


def test_what_is_for_testing_is_left_alone(tmp_path: Path) -> None:
    for part in ("a", "val", "test"):
        picture(tmp_path / part / "1.png")
    assert len(load_transfer(f"imagefolder:{tmp_path}", DATA).items) == 1


def test_a_transfer_set_for_testing_alone_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "Valid" / "a" / "1.png")
    with pytest.raises(UserError, match="no images to learn from, only some for testing"):
        load_transfer(f"imagefolder:{tmp_path / 'p'}", DATA)


def test_labels_count_where_the_classes_are_the_tasks(tmp_path: Path) -> None:
    for label in range(10):
        for part in ("train", "test"):
            picture(tmp_path / "own" / part / str(label) / "a.png", level=20 * label)
            picture(tmp_path / "foreign" / part / f"class{label}" / "a.png")
    own = load_transfer(f"imagefolder:{tmp_path}/own", DATA)
    assert own.labelled
    assert own.items.fetch(torch.arange(10))[1].tolist() == list(range(10))
    foreign = load_transfer(f"imagefolder:{tmp_path}/foreign", DATA)
    assert not foreign.labelled
    assert len(foreign.items) == 10, "its test part is left alone"
    assert own.fingerprint != foreign.fingerprint


def test_labels_count_in_the_order_of_the_tasks_classes(tmp_path: Path) -> None:
    for label in range(12):
        for place, more in (("own", 0), ("other", 7)):
            for part in ("train", "test"):
                picture(tmp_path / place / part / str(label) / "a.png", level=20 * label + more)
    for order in ("text", "number"):
        data = load_data(f"imagefolder:{tmp_path}/own", size=8, class_order=order)
        found = load_transfer(f"imagefolder:{tmp_path}/other", data)
        assert found.labelled
        (images,), targets = found.items.fetch(torch.arange(12))
        names = [int(data.task.classes[label]) for label in targets]
        assert (images[:, 0, 0, 0] // 20).tolist() == names
        own = load_transfer(f"imagefolder:{tmp_path}/own", data)
        assert own.items is data.train, "its own source, whatever the order"


def test_named_sources_and_arrays(tmp_path: Path) -> None:
    same = load_transfer("digits", DATA_WHOLE)
    assert same.labelled
    assert len(same.items) == 1437 - 143, "what is held out for validation stays held out"
    assert same.items.fetch(torch.arange(5))[1].tolist() == (
        DATA_WHOLE.train.fetch(torch.arange(5))[1].tolist()
    )
    x = np.random.RandomState(0).randint(0, 256, (7, 20, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    bare = load_transfer(f"arrays:{tmp_path}/x.npz", DATA)
    assert not bare.labelled
    (images,), _ = bare.items.fetch(torch.arange(7))
    assert images.shape == (7, 1, 8, 8)
    y = np.arange(7) % 2
    np.savez(tmp_path / "xy.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    two = load_transfer(f"arrays:{tmp_path}/xy.npz", DATA)
    assert not two.labelled, "its two classes are not the task's ten"
    assert two.items.fetch(torch.arange(7))[1].tolist() == [0] * 7


def test_labels_of_arrays_count_where_they_name_the_tasks_classes(tmp_path: Path) -> None:
    x = np.zeros((20, 8, 8, 1), np.uint8)
    arrays = {
        "x_train": x,
        "y_train": np.arange(20) % 10,
        "x_test": x,
        "y_test": np.arange(20) % 10,
    }
    np.savez(tmp_path / "numbers.npz", **arrays)
    unnamed = load_transfer(f"arrays:{tmp_path}/numbers.npz", DATA)
    assert not unnamed.labelled, "ten classes, of whatever"
    np.savez(tmp_path / "names.npz", classes=np.array(DATA.task.classes), **arrays)
    named = load_transfer(f"arrays:{tmp_path}/names.npz", DATA)
    assert named.labelled
    assert named.items.fetch(torch.arange(20))[1].tolist() == arrays["y_train"].tolist()
    np.savez(tmp_path / "odd.npz", classes=np.arange(10), **arrays)
    with pytest.raises(UserError, match="it must hold the classes' names"):
        load_transfer(f"arrays:{tmp_path}/odd.npz", DATA)


@pytest.mark.parametrize("labelled", [False, True])
def test_other_images_of_the_same_names_and_sizes_are_another_set(
    labelled: bool, tmp_path: Path
) -> None:
    places = [f"train/{c}/0.bmp" for c in DATA.task.classes] if labelled else ["0.bmp", "1.bmp"]
    found = []
    for name, level in (("day", 200), ("night", 10), ("copy", 10)):
        for place in places:
            picture(tmp_path / name / place, level=level)
            if labelled:
                picture(tmp_path / name / place.replace("train", "test"), level=level)
        found.append(load_transfer(f"imagefolder:{tmp_path}/{name}", DATA).fingerprint)
    day, night, copy = found
    assert day != night == copy


def photos(folder: Path, count: int, classes: str = "xyz") -> str:
    for name in classes:
        for number in range(count):
            picture(folder / name / f"{number}.png", level=10 * number + 60 * classes.index(name))
    return f"imagefolder:{folder}"


def test_a_calibration_source_is_used_as_a_whole_whatever_its_layout(tmp_path: Path) -> None:
    photos(tmp_path / "own" / "train", 4)
    photos(tmp_path / "own" / "val", 2)
    data = load_data(f"imagefolder:{tmp_path / 'own'}", size=8)
    for place in ("few", "few/val", "few/test", "loose/a/b"):
        photos(tmp_path / "new" / place, 4)
        top = tmp_path / "new" / place.partition("/")[0]
        found = calibrated(data, f"imagefolder:{top}")
        assert len(found.calibration) == 12, place
        assert found.calibration_fingerprint
        shutil.rmtree(tmp_path / "new")
    for place, count in (("train", 4), ("val", 9), ("test", 9)):
        photos(tmp_path / "parts" / place, count)
    found = calibrated(data, f"imagefolder:{tmp_path / 'parts'}")
    assert len(found.calibration) == 12, "what is for testing is left alone"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"the calibration source .* holds no images"):
        calibrated(data, f"imagefolder:{tmp_path / 'none'}")


@pytest.mark.parametrize("parts", [("train", "val"), ("val",), ("",)])
def test_a_source_calibrates_itself_on_its_training_images(
    parts: tuple[str, ...], tmp_path: Path
) -> None:
    for part in parts:
        photos(tmp_path / part, 8)
    data = load_data(f"imagefolder:{tmp_path}", size=8)
    found = calibrated(data, f"imagefolder:{tmp_path}")
    assert len(found.calibration) == len(data.train)
    assert found.calibration.whole is data.train  # type: ignore[attr-defined]


def test_images_for_testing_do_not_calibrate_by_another_path(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "val", 6)
    data = load_data(f"imagefolder:{tmp_path / 'p'}", size=8)
    (tmp_path / "linked").symlink_to(tmp_path / "p" / "val")
    found = calibrated(data, f"imagefolder:{tmp_path / 'linked'}")
    assert len(found.calibration) == 18 - len(data.test)
    assert f"less {len(data.test)} that are for testing" in found.note
    for path in data.validation.files:  # type: ignore[attr-defined]
        path.unlink()
    with pytest.raises(UserError, match="holds only images that are for testing"):
        calibrated(data, f"imagefolder:{tmp_path / 'linked'}")


def test_colours_by_hand() -> None:
    gray = torch.tensor([[[[7]]]], dtype=torch.uint8)
    assert fitted(gray, 3, (1, 1)).tolist() == [[[[7]], [[7]], [[7]]]]
    rgb = torch.tensor([[[[255]], [[100]], [[10]]]], dtype=torch.uint8)
    assert fitted(rgb, 1, (1, 1)).item() == round(0.299 * 255 + 0.587 * 100 + 0.114 * 10)


def test_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_transfer(f"imagefolder:{tmp_path}/empty", DATA)
    with pytest.raises(UserError, match="unknown data source 'nothing'"):
        load_transfer("nothing", DATA)
    with pytest.raises(UserError, match="no folder"):
        load_transfer(f"imagefolder:{tmp_path}/absent", DATA)
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 8, 8, 2), np.uint8))
    with pytest.raises(UserError, match="images of 2 channels"):
        load_transfer(f"arrays:{tmp_path}/odd.npz", DATA)
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="holds no images"):
        load_transfer(f"arrays:{tmp_path}/none.npz", DATA)
    np.savez(tmp_path / "floats.npz", x=np.zeros((3, 8, 8, 1)))
    with pytest.raises(UserError, match="must be uint8"):
        load_transfer(f"arrays:{tmp_path}/floats.npz", DATA)
