"""Image files: which count, and that every one that cannot be read is found before any work."""

from __future__ import annotations

import errno
import io
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import small_digits
from deep_images import png16, ppm16, tiff16
from photo_folders import folder_of_photos, noise
from PIL import Image, ImageOps

from compress.api import prepare
from compress.benchmark.plan.suite import Suite
from compress.errors import UserError
from compress.system.files import write_atomic
from compress.tasks.base import Data
from compress.tasks.preprocessing import Fit
from compress.zoo import image_files
from compress.zoo.data import load_data
from compress.zoo.image_files import (
    ImageFiles,
    check_images,
    decode,
    fault,
    images_below,
    remarks,
)
from compress.zoo.transfer import load_transfer

EIGHT = Fit((8, 8), (8, 8))
KINDS = {
    "plain.jpg": {},
    "progressive.jpg": {"progressive": True},
    "gray.png": {},
    "interlaced.gif": {},
    "lossy.webp": {},
    "packed.tif": {"compression": "tiff_deflate"},
    "raw.bmp": {},
    "raw.ppm": {},
}


def read(path: Path) -> str:
    """Return the error of `decode` on a file; '' if there is none."""
    try:
        decode(path, EIGHT)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", KINDS)
def test_what_cannot_be_read_later_is_found_however_much_of_it_is_missing(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    image = noise().convert("L") if name.startswith("gray") else noise()
    image.save(path, **KINDS[name])
    assert fault(path) == read(path) == ""
    whole = path.read_bytes()
    refused = 0
    for left in range(0, len(whole), 1 + len(whole) // 150):
        path.write_bytes(whole[:left])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of a file that ends too soon
            assert bool(fault(path)) == bool(read(path)), left
            refused += bool(fault(path))
    assert refused > 100


def test_the_error_names_the_reason(tmp_path: Path) -> None:
    def reason(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return fault(tmp_path / name)

    whole = io.BytesIO()
    noise().save(whole, "JPEG")
    assert reason("empty.jpg", b"") == "the file is empty"
    assert reason("text.jpg", b"some text") == "it is no image, or in an unknown format"
    assert "truncated" in reason("half.jpg", whole.getvalue()[:-100])
    os.mkfifo(tmp_path / "pipe.jpg")
    assert fault(tmp_path / "pipe.jpg") == "it is not a regular file", "and it does not wait for it"
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "absent.jpg")
    assert fault(tmp_path / "gone.jpg") == "No such file or directory"


def test_modes_that_are_converted_are_sound(tmp_path: Path) -> None:
    for number, mode in enumerate(("1", "L", "LA", "P", "RGBA", "I;16")):
        Image.new(mode, (9, 9)).save(tmp_path / f"{number}.png")
    Image.new("CMYK", (64, 64)).save(tmp_path / "cmyk.jpg")
    Image.new("F", (9, 9)).save(tmp_path / "f.tif")
    for path in tmp_path.iterdir():
        assert fault(path) == read(path) == "", path


def test_levels_are_not_lost(tmp_path: Path) -> None:
    """Shares of white, levels in floating point, and 16 bits, of which Pillow would clip most."""
    shades = np.array([[0, 0.25, 0.5, 1]], np.float32)
    deep = np.array([[0, 64, 128, 255]], np.uint16) * 257
    fit = Fit((1, 4), (1, 4))
    for name, levels in {
        "share.tif": shades,
        "float.tif": shades * 255,
        "deep.png": deep,
        "wide.tif": deep.astype(np.int32),
        "plain.tif": (deep >> 8).astype(np.int32),
    }.items():
        Image.fromarray(levels).save(tmp_path / name)
        assert fault(tmp_path / name) == "", name
        pixels = decode(tmp_path / name, fit)[0, :, 0]
        np.testing.assert_array_equal(pixels, [0, 64, 128, 255], err_msg=name)
    for name, levels in {
        "negative.tif": shades - 1,
        "large.tif": shades * 300,
        "nan.tif": shades * np.nan,
        "long.tif": deep.astype(np.int32) * 2,
    }.items():
        Image.fromarray(levels).save(tmp_path / name)
        assert "levels" in fault(tmp_path / name), name


def test_what_a_file_loses_is_said(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    noise().save(tmp_path / "turned.jpg", exif=turned)
    noise().save(tmp_path / "turned.tif", exif=turned)  # which Pillow turns itself
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "dark.png")
    frames = [noise(seed=seed) for seed in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    noise().save(tmp_path / "plain.png")
    files = sorted(tmp_path.iterdir())
    said = remarks(ImageFiles(files, [0] * 5, EIGHT))
    assert [line.partition(" looked at, ")[2][:22] for line in said] == [
        "1 are stored turned, a",
        "1 are animated, and th",
        "1 have 16 bits and use",
    ]
    said = remarks(ImageFiles(files, [0] * 5, replace(EIGHT, exif=True)))
    assert not any("turned" in line for line in said)
    turned = decode(tmp_path / "turned.jpg", replace(EIGHT, exif=True))
    plain = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.jpg")))
    np.testing.assert_array_equal(turned, EIGHT(Image.fromarray(plain)))
    tiffs = [decode(tmp_path / "turned.tif", replace(EIGHT, exif=exif)) for exif in (False, True)]
    turned_once = np.asarray(noise().transpose(Image.Transpose.ROTATE_270))
    for tiff in tiffs:
        np.testing.assert_array_equal(tiff, EIGHT(Image.fromarray(turned_once)))


def test_levels_that_are_read_as_nearly_black_are_said_of_every_split(tmp_path: Path) -> None:
    levels = {
        "dark16": np.full((8, 8), 4000, np.uint16),
        "dark32": np.full((8, 8), 4000, np.int32),
        "faint": np.full((8, 8), 1.2, np.float32),
        "eight": np.full((8, 8), 200, np.int32),
        "white": np.full((8, 8), 0.7, np.float32),
        "deep": np.full((8, 8), 40000, np.int32),
    }
    for name, values in levels.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
    noise().save(tmp_path / "camera.mpo", save_all=True, append_images=[noise(seed=1)])
    with Image.open(tmp_path / "camera.mpo") as camera:
        assert (camera.format, camera.n_frames) == ("MPO", 2)
    dark, faint, rest = (
        ImageFiles(files, [0] * len(files), EIGHT)
        for files in (
            sorted(tmp_path.glob("dark*")),
            [tmp_path / "faint.tif"],
            [tmp_path / name for name in ("eight.tif", "white.tif", "deep.tif", "camera.mpo")],
        )
    )
    assert remarks(rest) == []
    said = remarks(dark, faint, rest, rest, None)
    assert [line.partition(" are read as nearly black")[0][:58] for line in said] == [
        "of 7 image files looked at, 2 have 16 bits and use at most",
        "of 7 image files looked at, 1 have floating-point levels t",
    ]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_that_use_12_are_said(channels: int, tmp_path: Path) -> None:
    def files_of(most: int) -> list[Path]:
        levels = np.random.default_rng(0).integers(0, most, (8, 9, channels), np.uint16)
        levels[0, 0] = most
        if channels != 3:
            levels[..., -1] = 65535  # opaque
        kinds = {"a.png": png16(levels)}
        if channels > 2:
            kinds |= {"b.tif": tiff16(levels), "c.tif": tiff16(levels, deflate=True)}
        if channels == 3:
            kinds["d.ppm"] = ppm16(levels)
        folder = tmp_path / str(most)
        folder.mkdir()
        for name, content in kinds.items():
            (folder / name).write_bytes(content)
            if most == 65535:
                got = decode(folder / name, Fit((8, 9), (8, 9)))
                colours = levels[..., :3] if channels > 2 else levels[..., :1].repeat(3, 2)
                close = np.abs(got - colours / 257.0).max()
                assert close <= 1, "the writers here are right"
        return sorted(folder.iterdir())

    def said(files: list[Path]) -> list[str]:
        return remarks(ImageFiles(files, [0] * len(files), EIGHT))

    dark = files_of(4095)
    [line] = said(dark)
    assert line.startswith(
        f"of {len(dark)} image files looked at, {len(dark)} have 16 bits and use at most 12"
    )
    assert said(files_of(65535)) == []
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    assert said([tmp_path / "black.png"]) == [], "of 8 bits"


def test_every_split_is_looked_at(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path)
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(root / "train" / "cat" / "dark.png")
    note = load_data(f"imagefolder:{root}", size=8).note
    assert "of 25 image files looked at, 1 have 16 bits" in note


def test_a_file_without_permission_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise().save(tmp_path / "a.png")

    def refuse(path: Path) -> None:  # root, as which tests may run, is never refused
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Image, "open", refuse)
    assert fault(tmp_path / "a.png") == "Permission denied"


def test_all_bad_files_of_all_splits_are_named_before_any_work(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path / "photos", ("train", "val", "test"))
    bad = [root / place for place in ("test/dog/3.png", "train/cat/0.png", "val/cat/5.png")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-200])
    (root / "test/cat/1.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(Suite("mine", f"imagefolder:{root}", "mlp", ("train()",)), out=tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 of 36 image files cannot be read:"
    assert lines[-1] == "Repair, replace or remove them, then run again; nothing was computed yet"
    assert lines[1] == f"  {bad[1]}: image file is truncated"
    assert f"  {root}/test/cat/1.png: the file is empty" in lines
    assert {line.split(":")[0].strip() for line in lines[1:-1]} == {
        *map(str, bad),
        str(root / "test/cat/1.png"),
    }
    assert not (tmp_path / "out").exists()


def test_of_many_bad_files_some_are_named(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path, count=20)
    for path in images_below(root / "test"):
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load_data(f"imagefolder:{root}")
    lines = str(caught.value).splitlines()
    assert lines[0] == "40 of 80 image files cannot be read:"
    assert (len(lines), lines[21]) == (23, "  and 20 more")


def sized(image: Image.Image, path: Path, turned: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turned
    image.save(path, exif=exif)
    return path


def test_all_files_of_another_size_are_named_where_they_are_not_resized(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path / "photos", ("train", "val", "test"))
    name = f"imagefolder:{root}"
    load_data(name, size=(20, 30), resize="none")
    noise((30, 20)).save(root / "train/cat/2.png")
    sized(noise((20, 30)), root / "val/dog/1.png", turned=6)
    sized(noise((30, 20)), root / "test/dog/0.png", turned=8)
    load_data(name, size=8)
    for exif, named in (
        (False, {"train/cat/2.png": "30x20", "test/dog/0.png": "30x20"}),
        (True, {"train/cat/2.png": "30x20", "val/dog/1.png": "30x20"}),
    ):
        with pytest.raises(UserError) as caught:
            load_data(name, size=(20, 30), resize="none", exif=exif)
        first, *lines, last = str(caught.value).splitlines()
        assert first == "2 of 36 image files have another size, and resize is 'none':"
        assert {*lines} == {
            f"  {root}/{at}: {size} pixels, not 20x30" for at, size in named.items()
        }
        assert last.startswith("Give another resize ('shorter', 'longer' or 'exact'), or replace")
    (root / "train/cat/3.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 36 image files cannot be read"):
        load_data(name, size=(20, 30), resize="none")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif"])
@pytest.mark.parametrize("exif", [False, True])
def test_a_file_has_the_size_that_decoding_it_finds(
    suffix: str, exif: bool, tmp_path: Path
) -> None:
    for turned in (1, 3, 5, 6, 7, 8):
        path = sized(noise((20, 30)), tmp_path / f"{turned}.{suffix}", turned)
        for size in ((20, 30), (30, 20)):
            split = ImageFiles([path], [0], Fit(size, size, "none", exif=exif))
            try:
                split.fetch(torch.tensor([0]))
            except UserError:
                with pytest.raises(UserError, match="1 of 1 image files have another size"):
                    check_images(split)
            else:
                check_images(split)


def test_a_transfer_set_is_checked_but_not_what_is_for_its_testing(tmp_path: Path) -> None:
    root, data = folder_of_photos(tmp_path), small_digits()
    for named in (False, True):
        if named:  # with the task's classes, so that it is read as a source
            for name in data.task.classes:
                for part in ("train", "test"):
                    (root / part / name).mkdir()
                    noise().save(root / part / name / "a.png")
        bad = root / "test" / "cat" / "0.png"
        bad.write_bytes(b"")
        found = load_transfer(f"imagefolder:{root}", data)
        bad.unlink()
        again = load_transfer(f"imagefolder:{root}", data)
        assert found.fingerprint == again.fingerprint, "its test part is nothing that a step sees"
        (root / "train" / "dog" / "1.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"1 of \d+ image files cannot be read:\n.*train/dog/1"):
            load_transfer(f"imagefolder:{root}", data)
        noise().save(root / "train" / "dog" / "1.png")


# --- what is ignored ----------------------------------------------------------------------


def test_hidden_and_system_files_are_skipped_at_every_level(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path)
    before = load_data(f"imagefolder:{root}", size=8)
    for place in (
        *("train/.git/0.png", "train/cat/.cache/a/0.png", "train/cat/._0.png", "test/.x/0.png"),
        *("train/__MACOSX/cat/0.png", "test/dog/@eaDir/0.png/THUMB_M.jpg", "test/__MACOSX/0.png"),
        *("train/cat/Thumbs.db", "train/lost+found/0.png", "test/cat/.ipynb_checkpoints/1.jpg"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"no image")
    after = load_data(f"imagefolder:{root}", size=8)
    assert after.task.classes == ("cat", "dog")
    assert after.fingerprint == before.fingerprint
    assert (len(after.train), len(after.test)) == (len(before.train), len(before.test))
    loose = load_transfer(f"imagefolder:{root}", small_digits())
    assert len(loose.items) == 12
    deep = root / "train" / "cat" / "more" / "deeper.JPG"
    deep.parent.mkdir()
    noise().save(deep, "JPEG")
    assert images_below(root / "train" / "cat")[-1] == deep


def test_every_format_that_pillow_decodes_counts_and_other_files_are_said(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path)
    place = root / "train" / "cat"
    for suffix in (".jfif", ".JPE", ".tga", ".pcx"):
        noise().save(place / f"more{suffix}", "JPEG" if suffix[1] in "jJ" else None)
    for name in ("0.txt", "labels.csv", "0.xml", "Thumbs.db"):
        (place / name).write_bytes(b"beside images")
    before = load_data(f"imagefolder:{root}", size=8)
    assert len(before.train) + len(before.validation) == 16
    assert "skipped" not in before.note
    (place / "film.mpg").write_bytes(b"")
    note = load_data(f"imagefolder:{root}", size=8).note
    assert "1 file of another kind was skipped: train/cat/film.mpg" in note
    (root / "test" / "dog" / "phone.heic").write_bytes(b"")
    note = load_data(f"imagefolder:{root}", size=8).note
    assert "2 files of other kinds were skipped, such as t" in note


def test_linked_folders_are_followed_and_read_once(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path / "p")
    place = root / "train" / "cat"
    far = folder_of_photos(tmp_path / "far", ("",)) / "cat"
    (place / "a").symlink_to(far)
    (place / "b").symlink_to(far)
    (far / "back").symlink_to(far)
    (place / "around").symlink_to(root)
    (place / "deep").mkdir()
    noise().save(place / "deep" / "0.png")
    (place / "0-first").symlink_to(place / "deep")
    found = [path.relative_to(place).as_posix() for path in images_below(place)]
    own = [f"{number}.png" for number in range(6)]
    assert found == sorted([*own, *(f"a/{name}" for name in own), "deep/0.png"])


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, look = folder_of_photos(tmp_path), os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "cat":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .*cat: Permission denied"):
        load_data(f"imagefolder:{root}")


# --- what is remembered -------------------------------------------------------------------


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Remember from the first file on, in a cache of our own; return what is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "LEAST", 1)
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return fault(path)

    monkeypatch.setattr(image_files, "fault", noted)
    return names


def test_the_next_run_reads_only_what_is_new_or_has_changed(
    tmp_path: Path, seen: list[str]
) -> None:
    root = folder_of_photos(tmp_path / "photos")
    name = f"imagefolder:{root}"

    def again() -> list[str]:
        seen.clear()
        load_data(name, size=8)
        return sorted(seen)

    assert len(again()) == 24
    assert again() == []
    noise(seed=99).save(root / "test" / "cat" / "new.png")
    assert again() == ["new.png"]
    changed = root / "train" / "dog" / "2.png"
    times = changed.stat().st_atime_ns, changed.stat().st_mtime_ns
    changed.write_bytes(bytes(changed.stat().st_size))
    os.utime(changed, ns=times)  # of the same size, and it claims to be as old
    for _ in range(2):
        with pytest.raises(UserError, match=r"dog/2\.png"):
            again()
        assert seen == ["2.png"], "a bad file is read each time"
    changed.unlink()
    assert again() == []


def test_sound_files_are_looked_at_again_for_another_size(tmp_path: Path, seen: list[str]) -> None:
    name = f"imagefolder:{folder_of_photos(tmp_path / 'photos')}"
    for _ in range(2):
        load_data(name, size=(20, 30), resize="none")
        with pytest.raises(UserError, match="24 of 24 image files have another size"):
            load_data(name, size=(30, 20), resize="none")
    assert len(seen) == 24, "whether they are sound is known"
    load_data(name, size=8)
    with pytest.raises(UserError, match="24 of 24"):
        load_data(name, size=8, resize="none")


def test_a_damaged_memory_is_harmless(tmp_path: Path, seen: list[str]) -> None:
    root = folder_of_photos(tmp_path / "photos")
    bad = root / "test" / "cat" / "0.png"
    bad.write_bytes(b"")
    files = [*images_below(root / "train"), *images_below(root / "test")]
    split = image_files.ImageFiles(files, [0] * len(files), EIGHT)
    with pytest.raises(UserError):
        check_images(split)
    [memory] = (tmp_path / "cache" / "compress-models" / "checked-images").iterdir()
    whole = memory.read_bytes()
    assert len(whole) == 23 * 16
    for content, count in ((b"", 24), (whole[:-1], 2), (b"x" + whole, 24), (whole[::-1], 24)):
        write_atomic(memory, content)
        seen.clear()
        with pytest.raises(UserError, match="1 of 24 image files"):
            check_images(split)
        assert len(seen) == count
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.write_text("a file in place of the folder")
    with pytest.raises(UserError, match="1 of 24 image files"):
        check_images(split)


def test_what_was_checked_until_it_was_stopped_is_remembered(
    tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of_photos(tmp_path / "photos")
    monkeypatch.setattr(image_files, "CHUNK", 10)

    def stopped(path: Path) -> str:
        if len(seen) >= 10:
            raise KeyboardInterrupt
        seen.append(path.name)
        return ""

    sound = image_files.fault
    monkeypatch.setattr(image_files, "fault", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_data(f"imagefolder:{root}")
    monkeypatch.setattr(image_files, "fault", sound)
    seen.clear()
    load_data(f"imagefolder:{root}")
    assert len(seen) == 14


# --- what depends on the test split -------------------------------------------------------


def contents(data: Data) -> list[list[bytes]]:
    """Return the items of all splits that steps may use, in order."""
    found = []
    for split in (data.train, data.validation, data.calibration):
        (images,), labels = split.fetch(torch.arange(len(split)))
        pairs = zip(images.numpy(), labels.tolist(), strict=True)
        found.append([image.tobytes() + bytes([label]) for image, label in pairs])
    return found


def test_a_step_does_not_depend_on_the_test_files(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path, count=20)

    def load() -> Data:
        return load_data(f"imagefolder:{root}", size=8)

    before = load()
    (root / "test" / "cat" / "0.png").unlink()
    noise(seed=77).save(root / "test" / "dog" / "1.png")
    after = load()
    assert contents(after) == contents(before)
    assert after.identity() == before.identity()
    assert after.test_identity() != before.test_identity()
    assert after.fingerprint != before.fingerprint
    (root / "train" / "cat" / "0.png").unlink()
    fewer = load()
    assert fewer.identity() != after.identity()
    assert fewer.test_identity() != after.test_identity()


def test_a_validation_split_of_its_own_is_something_that_steps_use(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path, ("train", "val", "test"))
    before = load_data(f"imagefolder:{root}", size=8).identity()
    (root / "val" / "cat" / "0.png").unlink()
    assert load_data(f"imagefolder:{root}", size=8).identity() != before


def test_of_a_flat_folder_too(tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path, ("",), count=40)
    before = load_data(f"imagefolder:{root}", size=8)
    before.test.files[0].unlink()  # type: ignore[attr-defined]
    after = load_data(f"imagefolder:{root}", size=8)
    assert len(after.test) == len(before.test) - 1
    assert contents(after) == contents(before)
    assert after.identity() == before.identity()
