"""Folders of images as data: what is read, how it is split, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pixels import arrays, everything

from compress.errors import UserError
from compress.tasks.base import Data
from compress.zoo.data import load_data
from compress.zoo.folder import would_read
from compress.zoo.transfer import load_transfer


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def image_folder(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            for i in range(12):
                paint(root / part / name / f"{i}.png", (100 * label, i, len(part)))
    return root


def test_image_folder_reads_every_file_with_its_class(tmp_path):
    data = load_data(f"imagefolder:{image_folder(tmp_path)}", size=(8, 6))
    images, labels = everything(data.test)
    assert images.shape == (24, 3, 8, 6)
    assert data.task.classes == ("cat", "dog")
    np.testing.assert_array_equal(labels, [0] * 12 + [1] * 12)
    np.testing.assert_array_equal(images[:, 0, 4, 3], labels * 100)
    assert set(images[:, 1, 0, 0]) == set(range(12))
    assert len(data.validation) == 2
    assert data.task.preprocessing.mean == (0.485, 0.456, 0.406)


def test_image_folder_defaults_to_224_pixels(tmp_path):
    data = load_data(f"imagefolder:{image_folder(tmp_path)}")
    assert data.train.fetch(torch.tensor([0, 1]))[0][0].shape == (2, 3, 224, 224)


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    root = image_folder(tmp_path)
    wide = Image.fromarray(arrays(1, (10, 40, 3))[0][0])
    wide.save(root / "test" / "cat" / "0.png")
    data = load_data(f"imagefolder:{root}", size=6)
    expected = wide.resize((24, 6), Image.Resampling.BILINEAR).crop((9, 0, 15, 6))
    first = everything(data.test)[0][0]
    np.testing.assert_allclose(first, np.moveaxis(np.asarray(expected, int), 2, 0), atol=1)


def test_other_kinds_of_images_become_rgb(tmp_path):
    root = image_folder(tmp_path)
    folder = root / "test" / "cat"
    Image.new("L", (9, 9), 50).save(folder / "0.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(folder / "1.png")
    Image.fromarray(np.full((9, 9), 50 * 256, np.uint16)).save(folder / "2.png")
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([7, 8, 9])
    palette.save(folder / "3.png", transparency=b"\x00")
    data = load_data(f"imagefolder:{root}", size=4)
    order = [path.name for path in data.test.files[:12]]
    images = dict(zip(order, everything(data.test)[0][:12, :, 0, 0].tolist(), strict=True))
    assert images["0.png"] == [50, 50, 50]
    assert images["1.png"] == [1, 2, 3]
    assert images["2.png"] == [50, 50, 50]
    assert images["3.png"] == [7, 8, 9]


def test_a_damaged_image_is_named(tmp_path):
    root = image_folder(tmp_path)
    data = load_data(f"imagefolder:{root}", size=4)
    (root / "test" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/3\.png"):
        everything(data.test)  # it was sound when it was checked
    with pytest.raises(UserError, match=r"dog/3\.png"):
        load_data(f"imagefolder:{root}", size=4)


def test_wrong_folders_are_refused_in_words(tmp_path):
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(UserError, match=words):
            load_data(f"imagefolder:{folder}", size=4)

    refused(tmp_path / "absent", "there is no folder .*/absent' to read images from$")
    refused(image_folder(tmp_path / "a", ("train",)), "neither 'test' nor 'val'")
    paint(tmp_path / "b" / "only" / "0.png", (0, 0, 0))
    refused(tmp_path / "b", r"1 class folder, but at least two are needed: .* into .*/b/CLASS/, or")
    refused(tmp_path / "b" / "only", rf"0 class .* name the folder above it, {tmp_path / 'b'}$")
    strange = image_folder(tmp_path / "c")
    paint(strange / "test" / "emu" / "0.png", (0, 0, 0))
    refused(strange, "'emu'")
    empty = image_folder(tmp_path / "d")
    (empty / "train" / "fox").mkdir()
    refused(empty, "class 'fox' .* has no training images")


def test_a_folder_beside_one_that_is_not_there_may_be_meant(tmp_path):
    image_folder(tmp_path / "photos")
    (tmp_path / "photo.txt").touch()
    (tmp_path / "photos.zip").touch()
    for name, meant in (("photo", "photos"), ("photo.zip", "photos.zip")):
        with pytest.raises(UserError) as caught:
            load_data(f"imagefolder:{tmp_path / name}", size=4)
        question = str(caught.value).partition("to read images from. ")[2]
        assert question.startswith(f"Did you mean '{tmp_path / meant}'")
        assert "photo.txt" not in question
    with pytest.raises(UserError, match=r"to read images from$"):
        load_data(f"imagefolder:{tmp_path / 'nowhere' / 'photo'}", size=4)
    (tmp_path / "made.npz").touch()
    with pytest.raises(UserError, match=rf"Did you mean '{tmp_path}/made\.npz'\?"):
        load_data(f"arrays:{tmp_path / 'mad.npz'}")


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_one_level_too_high_is_noted(tmp_path, inside):
    for name in ("cat", "dog"):
        for i in range(12):
            paint(tmp_path / "nest" / inside / "photos" / name / f"{i}.png", (i, 0, 0))
            paint(tmp_path / "nest" / inside / "other" / f"{name}{i}.png", (i, 1, 0))
            if inside:
                paint(tmp_path / "nest" / "test" / "photos" / f"{name}{i}.png", (i, 2, 0))
    note = load_data(f"imagefolder:{tmp_path / 'nest'}", size=4).note
    assert "images of 1 class lie in folders below theirs: photos (is the folder one" in note
    for i in range(12):
        place = tmp_path / "nest" / inside / "other"
        (place / "more").mkdir(exist_ok=True)
        for name in ("cat", "dog"):
            (place / f"{name}{i}.png").rename(place / "more" / f"{name}{i}.png")
    note = load_data(f"imagefolder:{tmp_path / 'nest'}", size=4).note
    assert "images of 2 classes lie in folders below theirs: other, photos (is the folder" in note
    assert "below theirs" not in load_data(f"imagefolder:{image_folder(tmp_path / 'a')}").note


def test_what_lies_among_the_images_would_be_read(tmp_path):
    split, testing = image_folder(tmp_path / "split"), image_folder(tmp_path / "t", ("val",))
    flat = image_folder(tmp_path / "up", ("flat",)) / "flat"
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(flat / name)
    for folder, place, read in [
        (flat, "e1", True),
        (flat, "dog/deep/e1", True),
        (flat, ".", True),
        (flat, ".e1", False),
        (flat, "../e1", False),
        (split, "e1", False),
        (split, ".", False),
        (split, "train/e1", True),
        (split, "test/cat/e1", True),
        (split, "val", True),
        (split, "Testing", False),
        (testing, "e1", True),  # beside it, 'val' would be a class
        (testing, ".", True),
        (tmp_path / "linked", str(flat / "dog" / "e1"), True),
        (tmp_path / "linked", str(flat / "e1"), False),
        (tmp_path / "photos.zip", "e1", False),
    ]:
        assert would_read(folder, folder / place) == read, (folder, place)


# --- splits -------------------------------------------------------------------------------


def test_val_is_the_validation_split_or_without_test_the_test_split(tmp_path):
    three = load_data(f"imagefolder:{image_folder(tmp_path / 'a', ('train', 'val', 'test'))}")
    assert len(three.train) == len(three.validation) == len(three.test) == 24
    two = load_data(f"imagefolder:{image_folder(tmp_path / 'b', ('train', 'validation'))}")
    assert (len(two.train), len(two.validation), len(two.test)) == (22, 2, 24)
    assert "test split" in two.note


def flat(root: Path, count: int) -> Data:
    for name in ("cat", "dog"):
        for i in range(count):
            paint(root / name / f"{i}.png", (i, 0, 0), (4, 4))
    return load_data(f"imagefolder:{root}", size=4)


def test_a_flat_folder_is_split_by_path_and_stays_split(tmp_path):
    small, large = flat(tmp_path, 40), flat(tmp_path, 60)
    before = {str(path) for path in small.test.files}
    after = {str(path) for path in large.test.files}
    assert before < after
    everyone = len(large.train) + len(large.validation) + len(large.test)
    assert everyone == 120
    assert 0.1 < len(large.test) / everyone < 0.3
    assert small.fingerprint != large.fingerprint


SPLIT_NAMES = [
    # The folders, and the items for training, validation and testing; 24 in each folder.
    (("train", "test", "eval"), (22, 2, 24), "folders beside its splits are not used: eval"),
    (("train", "val", "valid"), (22, 2, 24), "folders beside its splits are not used: valid"),
    (("train", "val", "evaluation"), (22, 2, 24), "not used: evaluation"),
    (("train", "valid", "test"), (24, 24, 24), "its folder 'valid' is the val split"),
    (("Train", "Test"), (22, 2, 24), "its folder 'Test' is the test split"),
    (("training", "testing"), (22, 2, 24), "its folder 'training' is the train split"),
]


@pytest.mark.parametrize(("names", "sizes", "note"), SPLIT_NAMES, ids=lambda one: str(one)[:30])
def test_splits_are_what_is_called_so_first_and_other_names_are_said(tmp_path, names, sizes, note):
    data = load_data(f"imagefolder:{image_folder(tmp_path, names)}", size=4)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert note in data.note


def test_a_class_may_be_called_as_a_split_is_in_capitals(tmp_path):
    for name in ("Bus", "Car", "Train"):
        for i in range(12):
            paint(tmp_path / name / f"{i}.png", (i, 0, 0), (4, 4))
    data = load_data(f"imagefolder:{tmp_path}", size=4)
    assert data.task.classes == ("Bus", "Car", "Train")
    again = load_transfer(f"imagefolder:{tmp_path}", replace(data, training_fingerprint="other"))
    assert again.labelled
    assert len(again.items) == len(data.train) + len(data.validation)


def test_an_image_is_in_one_split_and_one_class(tmp_path):
    root = image_folder(tmp_path)
    (root / "train" / "cat" / "more").symlink_to(root / "test" / "cat")
    with pytest.raises(UserError, match=r"test/cat/0\.png .* are one file, by way of a link"):
        load_data(f"imagefolder:{root}", size=4)
