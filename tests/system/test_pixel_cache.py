"""Pixels on disk: what is read is what was written, whatever happens to the files."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compress.system.pixel_cache import PixelCache, cached_sets, remove_set

SHAPE = (4, 5, 3)


def made(folder: Path, count: int = 6) -> PixelCache:
    return PixelCache(folder / "images", "key", count, SHAPE)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def test_what_was_written_is_read_by_others(tmp_path: Path) -> None:
    cache = made(tmp_path)
    into = np.zeros(SHAPE, np.uint8)
    assert not cache.read(2, b"mark", into), "nothing is there"
    cache.write(2, b"mark", image(2))
    for other in (cache, made(tmp_path), pickle.loads(pickle.dumps(cache))):
        assert other.read(2, b"mark", into)
        np.testing.assert_array_equal(into, image(2))
        assert not other.read(3, b"mark", into), "another image"
        assert not other.read(2, b"changed", into), "another file of this name"
        assert not other.read(2, b"", into), "no file at all"


def test_black_images_are_found_and_empty_places_are_not(tmp_path: Path) -> None:
    cache, into = made(tmp_path), np.ones(SHAPE, np.uint8)
    cache.write(0, b"m", np.zeros(SHAPE, np.uint8))
    assert cache.read(0, b"m", into)
    assert not into.any()
    assert not cache.read(1, b"m", into)


@pytest.mark.parametrize("name", ["key.pixels", "key.sums"])
def test_damage_is_seen(tmp_path: Path, name: str) -> None:
    cache, into = made(tmp_path), np.zeros(SHAPE, np.uint8)
    for number in range(6):
        cache.write(number, b"m", image(number))
    path = tmp_path / "images" / name
    content = bytearray(path.read_bytes())
    content[3 * len(content) // 6] ^= 1  # of the fourth image
    path.write_bytes(content)
    assert [made(tmp_path).read(number, b"m", into) for number in range(6)] == [
        *[True] * 3,
        False,
        *[True] * 2,
    ]
    path.write_bytes(content[: len(content) // 2])
    assert not made(tmp_path).read(5, b"m", into)


def test_a_disk_without_room_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=6 * 60)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert made(tmp_path).reserve() == "they take 360 B, and 360 B is free there"
    free.free = 12 * 60
    cache = made(tmp_path)
    assert cache.reserve() == ""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.write(0, b"m", image(0))
    assert not cache.read(0, b"m", np.zeros(SHAPE, np.uint8))
    (tmp_path / "file").write_text("")
    broken = PixelCache(tmp_path / "file", "key", 1, SHAPE)
    assert "Not a directory" in broken.reserve() or "exists" in broken.reserve()
    broken.write(0, b"m", image(0))
    assert not broken.read(0, b"m", np.zeros(SHAPE, np.uint8))


def test_sets_that_are_still_to_come_take_their_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 2000  # 120 kB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    first, second = (PixelCache(tmp_path, key, many, SHAPE) for key in ("one", "two"))
    assert first.reserve() == ""
    assert "they take 120 kB, others there have 120 kB to come, and 300 kB is" in second.reserve()
    assert first.reserve() == "", "its room is its own"
    for number in range(many):
        first.write(number, b"m", image(number))
    assert second.reserve() == "", "what the first one takes is no longer free, and not to come"


def test_a_limit_holds_for_all_sets_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (PixelCache(tmp_path, key, 100, SHAPE) for key in ("one", "two"))
    assert first.reserve(0) == "they take 6 kB, and the pixel cache may take 0 B"
    assert first.reserve(6000) == ""
    beside = "they take 6 kB, others there 6 kB, and the pixel cache may take "
    assert second.reserve(11_999) == beside + "12 kB"
    assert second.reserve(12_000) == ""
    assert first.reserve(11_999) == beside + "12 kB", "it counts where it is there, too"
    # More than half of what is free, if that is what is asked for, but never nearly all.
    third = PixelCache(tmp_path / "other", "three", 100, SHAPE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7000))
    assert third.reserve() == "they take 6 kB, and 7 kB is free there"
    assert third.reserve(6000) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6500))
    fourth = PixelCache(tmp_path / "more", "four", 100, SHAPE)
    assert fourth.reserve(6000) == "they take 6 kB, and 6.5 kB is free there"


def filled(folder: Path, key: str, used: int = 0, count: int = 100) -> None:
    """A set that nobody has open, last used at a time."""
    cache = PixelCache(folder, key, count, SHAPE)
    for number in range(count):
        cache.write(number, b"m", image(number))
    os.utime(cache.path, (used, used))


def keys_in(folder: Path) -> set[str]:
    assert {one.stem for one in folder.glob("*.sums")} == {
        one.stem for one in folder.glob("*.pixels")
    }
    return {one.stem for one in folder.glob("*.sums")}


def test_sets_that_nobody_uses_make_room_the_oldest_first(tmp_path: Path) -> None:
    for used, key in enumerate(("old", "older", "oldest")[::-1]):
        filled(tmp_path, key, used)
    new = PixelCache(tmp_path, "new", 150, SHAPE)
    assert new.reserve(5000).endswith("others there 18 kB, and the pixel cache may take 5 kB")
    assert keys_in(tmp_path) == {"old", "older", "oldest"}, "it would not help"
    assert new.reserve(27_000) == ""
    assert keys_in(tmp_path) == {"old", "older", "oldest", "new"}, "9 kB and three of 6 kB"
    second = PixelCache(tmp_path, "second", 100, SHAPE)
    assert second.reserve(27_000) == ""
    assert keys_in(tmp_path) == {"old", "older", "second", "new"}
    assert PixelCache(tmp_path, "older", 100, SHAPE).hold(), "it is used, and newer than the other"
    third = PixelCache(tmp_path, "third", 100, SHAPE)
    assert third.reserve(27_000) == ""
    assert keys_in(tmp_path) == {"older", "third", "second", "new"}


def test_what_is_open_makes_no_room(tmp_path: Path) -> None:
    filled(tmp_path, "one", used=1)
    filled(tmp_path, "two", used=2)
    reader = PixelCache(tmp_path, "one", 100, SHAPE)
    copied, into = pickle.loads(pickle.dumps(reader)), np.zeros(SHAPE, np.uint8)
    assert reader.hold()
    assert not PixelCache(tmp_path, "absent", 1, SHAPE).hold()
    new = PixelCache(tmp_path, "new", 100, SHAPE)
    assert new.reserve(12_000) == ""
    assert keys_in(tmp_path) == {"one", "new"}, "the other one is older, and is used"
    assert copied.read(3, b"m", into)
    del reader
    other = PixelCache(tmp_path, "other", 100, SHAPE)
    beside = "they take 6 kB, others there 12 kB, and the pixel cache may take 12 kB"
    assert other.reserve(12_000) == beside, "the copy has it open"
    del copied
    assert other.reserve(12_000) == ""
    assert keys_in(tmp_path) == {"other", "new"}


def test_another_process_has_a_set_open(tmp_path: Path) -> None:
    filled(tmp_path, "one")
    code = (
        "import sys; from pathlib import Path; from compress.system.pixel_cache import PixelCache; "
        f"held = PixelCache(Path(sys.argv[1]), 'one', 100, {SHAPE}); "
        "print(held.hold(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    new = PixelCache(tmp_path, "new", 100, SHAPE)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert "others there 6 kB" in new.reserve(6000)
        process.kill()
    assert new.reserve(6000) == "", "the system ends the lock of who dies"
    assert keys_in(tmp_path) == {"new"}


def test_without_a_limit_old_sets_make_room_where_the_disk_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 2000
    filled(tmp_path, "old", count=many)
    filled(tmp_path, "older", used=-1, count=many)
    taken = 512 * (tmp_path / "old.pixels").stat().st_blocks
    assert taken >= 120_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=240_000 - taken))
    assert PixelCache(tmp_path, "new", many, SHAPE).reserve() == ""
    assert keys_in(tmp_path) == {"new", "old"}, "120 kB of 240 kB"


def test_sets_can_be_listed_and_removed(tmp_path: Path) -> None:
    made(tmp_path).write(0, b"m", image(0))
    [pixels] = cached_sets(tmp_path)
    remove_set(pixels)
    assert not list((tmp_path / "images").iterdir())
