"""Arrays as data: what is read, how it is split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pixels import arrays, everything

from compress.errors import UserError
from compress.tasks.base import Split
from compress.zoo.data import from_arrays, load_data


def given(**changes):
    (x, y), (x_test, y_test) = arrays(), arrays(12, seed=1)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test, **changes}


def rows(split: Split) -> set[bytes]:
    return {image.tobytes() for image in everything(split)[0]}


def test_arrays_come_back_channels_first():
    pixels = given()
    data = from_arrays(**pixels)
    images, labels = everything(data.test)
    np.testing.assert_array_equal(images, np.moveaxis(pixels["x_test"], 3, 1))
    np.testing.assert_array_equal(labels, pixels["y_test"])
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert data.task.classes == ("0", "1", "2", "3")
    assert data.task.preprocessing.size == (6, 8)


def test_a_gray_image_may_lack_the_channel_axis():
    (x, y), (x_test, y_test) = arrays(shape=(5, 5)), arrays(12, (5, 5), 1)
    data = from_arrays(x, y, x_test, y_test)
    assert data.task.probe(1)[0].shape == (1, 1, 5, 5)


def test_later_changes_of_the_callers_array_do_not_matter():
    pixels = given()
    data = from_arrays(**pixels)
    before = rows(data.test)
    pixels["x_test"][:] = 0
    assert rows(data.test) == before


def test_a_tenth_of_train_is_held_out_and_nothing_is_lost():
    pixels = given()
    data = from_arrays(**pixels)
    everyone = {np.moveaxis(image, 2, 0).tobytes() for image in pixels["x_train"]}
    assert len(data.validation) == 4
    assert rows(data.train) | rows(data.validation) == everyone
    assert not rows(data.train) & rows(data.validation)
    assert rows(data.calibration) == rows(data.train)


def test_calibration_is_at_most_512_training_items():
    x, y = arrays(1000, (2, 2, 1))
    data = from_arrays(x, y, x[:10], y[:10])
    assert len(data.calibration) == 512
    assert len(set(data.calibration.index.tolist())) == 512


def test_the_hold_out_follows_the_data_and_no_seed():
    torch.manual_seed(1)
    first = from_arrays(**given())
    torch.manual_seed(2)
    np.random.seed(3)
    second = from_arrays(**given())
    assert first.fingerprint == second.fingerprint
    assert rows(first.validation) == rows(second.validation)


def test_the_fingerprint_sees_one_pixel_and_one_label():
    base = from_arrays(**given()).fingerprint
    pixel, label = given(), given()
    pixel["x_test"][3, 2, 1, 0] ^= 1
    label["y_train"][0] = 3
    prints = {base, from_arrays(**pixel).fingerprint, from_arrays(**label).fingerprint}
    assert len(prints) == 3
    assert len(base) == 64


def test_a_validation_split_of_their_own_is_used():
    x_val, y_val = arrays(7, seed=2)
    data = from_arrays(**given(), x_val=x_val, y_val=y_val)
    assert len(data.train) == 40
    np.testing.assert_array_equal(everything(data.validation)[1], y_val)


def test_mean_and_std_are_those_of_the_training_split():
    data = from_arrays(**given())
    images = everything(data.train)[0] / 255
    preprocessing = data.task.preprocessing
    np.testing.assert_allclose(preprocessing.mean, images.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(preprocessing.std, images.std((0, 2, 3)), atol=6e-5)


def test_constant_images_do_not_divide_by_zero():
    x, y = np.full((10, 4, 4), 9, np.uint8), np.arange(10) % 2
    data = from_arrays(x, y, x, y)
    (inputs,) = data.task.prepare(data.test.fetch(torch.arange(10))[0], torch.device("cpu"))
    assert torch.isfinite(inputs).all()


def test_measured_mean_and_std_come_to_the_order_of_the_colors(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **given())
    name = f"arrays:{tmp_path / 'mine.npz'}"
    plain, blue = (load_data(name, colors=colors).task for colors in ("RGB", "BGR"))
    assert len(set(plain.preprocessing.mean)) == 3
    assert blue.preprocessing.mean == plain.preprocessing.mean[::-1]
    torch.testing.assert_close(blue.probe(2)[0], plain.probe(2)[0].flip(1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_longer_arrays_lack_is_filled_with_the_mean_of_each_channel(
    channels: int, tmp_path: Path
) -> None:
    shape, mean = (6, 8, channels), tuple(0.1 + 0.2 * at for at in range(channels))
    (x, y), (x_test, y_test) = arrays(shape=shape), arrays(12, shape)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    keys = {"size": 16, "resize": "longer", "mean": mean, "std": (0.25,) * channels}
    for colors in ("RGB", "BGR") if channels == 3 else ("RGB",):
        data = load_data(f"arrays:{tmp_path / 'mine.npz'}", colors=colors, **keys)
        [inputs] = data.task.probe()
        padding = inputs[:, :, [0, 1, 14, 15]]
        assert padding.abs().max() <= 0.5 / 255 / 0.25 + 1e-6, "half a level"
        assert (inputs[:, :, 2:14].abs() > 0.1).any()


def test_arrays_that_are_not_to_be_resized_must_have_their_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **given())
    name = f"arrays:{tmp_path / 'mine.npz'}"
    with pytest.raises(UserError, match=r"mine has images of 6x8 pixels, not 16x16, and resize is"):
        load_data(name, size=16, resize="none")
    kept = load_data(name, size=(6, 8), resize="none")
    np.testing.assert_array_equal(everything(kept.test)[0], everything(load_data(name).test)[0])


def test_given_settings_win():
    data = from_arrays(**given(), mean=(0.1, 0.2, 0.3), std=(1, 2, 3), augment="crop", name="mine")
    assert data.task.preprocessing.mean == (0.1, 0.2, 0.3)
    assert data.task.preprocessing.std == (1.0, 2.0, 3.0)
    assert (data.task.augment, data.task.name) == ("crop", "mine")


def test_resizing_keeps_flat_colour_and_halves_by_averaging():
    pixels = given()
    data = from_arrays(**pixels, size=(3, 4))
    images, _ = everything(data.test)
    assert images.shape == (12, 3, 3, 4)
    assert data.task.probe(1)[0].shape == (1, 3, 3, 4)
    flat = from_arrays(**{**pixels, "x_test": np.full((12, 6, 8, 3), 77, np.uint8)}, size=13)
    assert set(np.unique(everything(flat.test)[0])) == {77}


def test_what_steps_use_of_arrays_does_not_depend_on_the_test_arrays():
    before = from_arrays(**given())
    fewer = given()
    fewer |= {name: fewer[name][1:] for name in ("x_test", "y_test")}
    after = from_arrays(**fewer)
    for part in ("train", "validation", "calibration"):
        assert (everything(getattr(after, part))[0] == everything(getattr(before, part))[0]).all()
    assert after.identity() == before.identity()
    assert after.test_identity() != before.test_identity()
    changed = given()
    changed["x_train"][3, 2, 1, 0] ^= 1
    assert from_arrays(**changed).identity() != before.identity()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": arrays()[0].astype(np.float32)}, "must be uint8"),
        ({"x_train": np.array([object()] * 40)}, "holds object"),
        ({"x_train": arrays()[0][:, :, 0, 0]}, "must be \\(N, H, W, C\\)"),
        ({"x_train": np.zeros((40, 3, 8, 8), np.uint8)}, "channels last"),
        ({"x_test": arrays(12, (6, 6, 3))[0]}, "different shapes"),
        ({"y_train": np.arange(39)}, "40 images, but y_train has 39"),
        ({"y_train": np.arange(40) / 2}, "whole class numbers"),
        ({"y_train": np.arange(40) - 1}, "label -1"),
        ({"y_train": np.zeros((40, 4), int)}, "one class number for each"),
        ({"x_test": arrays(0)[0], "y_test": arrays(0)[1]}, "test split of arrays is empty"),
        ({"x_train": arrays(1)[0], "y_train": arrays(1)[1]}, "too few"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(12, int)}, "at least two classes"),
        ({"classes": ("a", "b")}, "only 2 class names"),
        ({"mean": (0.5,)}, "one value per channel"),
        ({"mean": 0.5}, "one value per channel"),
        ({"mean": "grey"}, "numbers"),
        ({"std": (0, 1, 1)}, "std must be positive"),
        ({"augment": "rotate"}, "joined by hyphens"),
        ({"size": 0}, "positive whole numbers"),
        ({"size": (4, 4, 3)}, "positive whole numbers"),
        ({"x_val": arrays(4)[0]}, "together"),
    ],
)
def test_wrong_arrays_are_refused_in_words(changes, words):
    with pytest.raises(UserError, match=words):
        from_arrays(**given(**changes))


def test_labels_that_are_no_class_numbers_are_refused_or_said() -> None:
    x = np.zeros((12, 8, 8), np.uint8)
    two = np.arange(12) % 2
    with pytest.raises(UserError, match=r"y_train holds the label 1,000,000,000: labels are class"):
        from_arrays(x, np.where(two, 10**9, 0), x, two)
    with pytest.raises(UserError, match=r"y_test has classes that y_train lacks: \[2\]"):
        from_arrays(x, two, x, np.arange(12) % 3)
    assert from_arrays(x, two, x, two).note == ""
    note = from_arrays(x, 10 * two, x, 10 * two).note
    assert note.startswith("9 of 11 classes have no items (1, 2, 3, 4, 5, ...)")
    wrapped = np.where(two, -1, 0).astype(np.uint8)
    note = from_arrays(x, wrapped, x, wrapped).note
    assert "254 of 256 classes have no items" in note
    assert "255 is what -1 becomes in uint8" in note
    full = np.arange(12) % 2 + 254
    assert "becomes in uint8" not in from_arrays(x, full, x, full).note, "254 has items as well"
    named = from_arrays(x, two, x, two, classes=["a", "b", "c"])
    assert named.note.startswith("1 of 3 classes have no items (2)")


def test_channels_that_come_first_are_refused() -> None:
    y = np.arange(6) % 2
    for channels in (1, 2, 3, 4):
        x = np.zeros((6, channels, 32, 32), np.uint8)
        with pytest.raises(UserError, match="looks like channels first"):
            from_arrays(x, y, x, y)
    for shape in ((4, 32, 48), (2, 48, 32), (13, 32, 32)):
        x = np.zeros((6, *shape), np.uint8)
        with pytest.raises(UserError, match="looks like channels first"):
            from_arrays(x, y, x, y)
    assert from_arrays(*[np.zeros((6, 4, 16, 3), np.uint8), y] * 2).task.probe(1)[0].shape[1] == 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13, 48])
def test_another_number_of_channels_than_of_photographs_is_said(channels: int) -> None:
    x, y = np.zeros((6, 32, 30, channels), np.uint8), np.arange(6) % 2
    said = f"images of 32 x 30 pixels and {channels} channels (the arrays' last axis)"
    assert from_arrays(x, y, x, y).note == ("" if channels in (1, 3) else said)


# --- files --------------------------------------------------------------------------------


def test_an_npz_file_is_the_same_as_its_arrays(tmp_path):
    np.savez(tmp_path / "mine.npz", **given())
    data = load_data(f"arrays:{tmp_path / 'mine.npz'}")
    assert data.fingerprint == from_arrays(**given()).fingerprint
    assert data.task.name == "mine"


def shards(folder: Path) -> dict[str, np.ndarray]:
    pixels = given()
    x, y = pixels["x_train"], pixels["y_train"]
    np.savez(folder / "train-0.npz", x=x[:15], y=y[:15])
    np.savez(folder / "train-1.npz", x=x[15:], y=y[15:])
    np.savez_compressed(folder / "test.npz", x=pixels["x_test"], y=pixels["y_test"])
    (folder / "classes.json").write_text(json.dumps(["ant", "bee", "cow", "dog", "eel"]))
    return pixels


def test_a_folder_of_shards_is_joined_in_order(tmp_path):
    pixels = shards(tmp_path)
    data = load_data(f"arrays:{tmp_path}")
    assert data.task.classes == ("ant", "bee", "cow", "dog", "eel")
    assert data.fingerprint == from_arrays(**pixels, classes=data.task.classes).fingerprint


def test_cifar10_is_read_from_shards_below_the_root(tmp_path):
    (tmp_path / "cifar10").mkdir()
    pixels = shards(tmp_path / "cifar10")
    data = load_data("cifar10", tmp_path, download=False)
    np.testing.assert_array_equal(everything(data.test)[1], pixels["y_test"])
    assert data.task.preprocessing.mean == (0.4914, 0.4822, 0.4465)


def broken(folder: Path) -> list[tuple[Path, str]]:
    np.savez(folder / "short.npz", x_train=np.zeros(3))
    np.save(folder / "single.npy", np.zeros(3))
    np.savez(folder / "objects.npz", **given(x_train=np.array([{}] * 40)))
    (folder / "torn.npz").write_bytes((folder / "short.npz").read_bytes()[:100])
    (folder / "text.npz").write_text("no arrays")
    (folder / "empty").mkdir()
    return [
        (folder / "short.npz", "lacks y_train, x_test, y_test"),
        (folder / "single.npy", "as numpy.savez writes it"),
        (folder / "objects.npz", "cannot read"),
        (folder / "torn.npz", "cannot read"),
        (folder / "text.npz", "cannot read"),
        (folder / "empty", "has no train.npz"),
        (folder / "absent.npz", "there is no file or folder"),
    ]


def test_broken_files_are_refused_in_words(tmp_path):
    for path, words in broken(tmp_path):
        with pytest.raises(UserError, match=words):
            load_data(f"arrays:{path}")


def test_all_broken_shards_are_named_together(tmp_path):
    shards(tmp_path)
    for name in ("train-1.npz", "test.npz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    (tmp_path / "train-2.npz").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load_data(f"arrays:{tmp_path}")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"cannot read {tmp_path / name}" for name in ("train-1.npz", "train-2.npz", "test.npz")
    ]
