"""The store: found again, shared, never believed when damaged, and cleaned without harm."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import build, fresh_model, small_digits

from compress.api import clean_store
from compress.benchmark.plan.keys import step_key
from compress.benchmark.store.store import ENTRY, Store
from compress.errors import CannotSave
from compress.model import Model
from compress.system.pixel_cache import FOLDER, PixelCache
from compress.tasks.base import Data

KEY = "0" * 64


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture
def store(tmp_path: Path, data: Data) -> Store:
    store = Store(tmp_path / "steps")
    about = {"step_log": [{"kind": "note", "text": "hello"}]}
    store.put_model(KEY, fresh_model(data, "mlp(width=8)"), build, about)
    return store


def test_round_trip(store: Store, data: Data) -> None:
    entry = store.get(KEY)
    assert entry is not None
    assert entry.step_log == [{"kind": "note", "text": "hello"}]
    ours = fresh_model(data, "mlp(width=8)").module.parameters()
    theirs = entry.model(build).module.parameters()
    assert all(map(torch.equal, ours, theirs))
    assert store.get("1" * 64) is None
    assert sum(1 for _ in store.entries()) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "blueprint.json", ENTRY])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "empty"])
def test_a_damaged_entry_is_set_aside(store: Store, name: str, damage: str) -> None:
    path = store.folder / KEY / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    assert store.get(KEY) is None
    assert not (store.folder / KEY).exists()
    [aside] = (store.folder / "damaged").iterdir()
    assert {left.name for left in (aside / "was").iterdir()} >= {"model.safetensors"} - {name}
    store.put(KEY, lambda folder: {"step_log": []})
    assert store.get(KEY) is not None


@pytest.mark.parametrize("place", range(7, 500, 41))
def test_any_flipped_bit_of_what_is_said_of_an_entry_is_found(store: Store, place: int) -> None:
    """The log too: samples and seconds of a step come from there."""
    path = store.folder / KEY / ENTRY
    content = bytearray(path.read_bytes())
    before = json.loads(content)
    content[place % len(content)] ^= 4
    path.write_bytes(bytes(content))
    entry = store.get(KEY)
    assert entry is None or json.loads(bytes(content)) == before


def test_an_entry_under_another_key_is_not_taken_for_it(store: Store) -> None:
    (store.folder / KEY).rename(store.folder / ("a" * 64))
    assert store.get("a" * 64) is None


def test_names_that_lead_out_of_an_entry_are_not_followed(store: Store) -> None:
    from compress.system.files import digest, sha256_file

    outside = store.folder.parent / "secret"
    outside.write_text("x")
    path = store.folder / KEY / ENTRY
    body = json.loads(path.read_text())["body"]
    body["files"]["../../secret"] = sha256_file(outside)
    path.write_text(json.dumps({"sha256": digest(body), "body": body}))
    assert store.get(KEY) is None


def test_lowered_models_bring_their_file(tmp_path: Path, data: Data) -> None:
    model = fresh_model(data, "mlp(width=8)")
    store = Store(tmp_path)
    store.put_model(KEY, Model(**{**vars(model), "onnx": b"bytes"}), build, {"step_log": []})
    entry = store.get(KEY)
    assert entry is not None
    assert entry.model(build).onnx == b"bytes"


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path, data: Data) -> None:
    model = fresh_model(data, "mlp(width=8)")
    model.module.odd = torch.rand(3)
    store = Store(tmp_path)
    with pytest.raises(CannotSave, match="odd"):
        store.put_model(KEY, model, build, {})
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins_and_the_second_is_content(store: Store) -> None:
    again = store.put(KEY, lambda folder: {"step_log": ["another"]})
    assert again.key == KEY
    entry = store.get(KEY)
    assert entry is not None
    assert entry.step_log == [{"kind": "note", "text": "hello"}]


def test_keys_depend_on_everything() -> None:
    base = step_key("parent", "finetune()", {"seed": 0})
    assert base == step_key("parent", "finetune()", {"seed": 0})
    others = {
        step_key("other", "finetune()", {"seed": 0}),
        step_key("parent", "finetune(epochs=2)", {"seed": 0}),
        step_key("parent", "finetune()", {"seed": 1}),
    }
    assert base not in others
    assert len(others) == 3


CLAIM = """
import sys, time
from pathlib import Path
from compress.benchmark.store.store import Store
with Store(Path(sys.argv[1])).claim(sys.argv[2]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_claim_holds_until_its_process_ends_however_it_ends(store: Store) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(store.folder), KEY], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "True\n"
        left = store.folder / f".writing-{KEY}-half"
        left.mkdir()
        with store.claim(KEY) as mine:
            assert not mine
        with store.claim("b" * 64) as mine:
            assert mine
        assert left.exists(), "its writer may be alive"
        other.kill()
    with store.claim(KEY) as mine:
        assert mine
        assert not left.exists(), "what a dead run has half written is removed"


def test_cleaning_by_age_and_by_size(store: Store) -> None:
    keys = [letter * 64 for letter in "abc"]
    for age, key in enumerate(keys):
        store.put(key, lambda folder: {"bytes": (folder / "x").write_bytes(b"1" * 10_000)})
        old = time.time() - 86_400 * (10 - age)
        os.utime(store.folder / key / ENTRY, (old, old))
    count, size = store.size()
    assert count == 4
    assert size > 30_000
    assert store.clean(older_than=86_400 * 9.5)[0] == 1
    assert store.get(keys[0]) is None
    assert store.get(keys[2]) is not None  # and is the most recently used one from now on
    removed, freed = store.clean(keep_bytes=store.size()[1] - 1)
    assert removed == 1
    assert freed > 10_000
    assert store.get(keys[1]) is None
    assert store.get(keys[2]) is not None


def test_decoded_images_are_counted_apart(store: Store) -> None:
    assert len(clean_store(store.folder).splitlines()) == 1
    for key, count in (("one", 3), ("two", 2)):
        cache = PixelCache(store.folder / FOLDER, key, 9, (64, 64, 3))
        for number in range(count):
            cache.write(number, b"mark", np.ones((64, 64, 3), np.uint8))
    images, taken = store.images()
    assert images == 5
    assert 5 * 64 * 64 * 3 <= taken <= store.size()[1]
    first, second = clean_store(store.folder).splitlines()
    assert ": 1 result, " in first
    assert second.startswith("of these, 5 decoded images: ")
    assert clean_store(store.folder, keep=0).startswith("Removed 3 entries; ")


def test_cleaning_removes_what_is_damaged_or_half_written(store: Store) -> None:
    (store.folder / KEY / "model.safetensors").write_bytes(b"")
    assert store.get(KEY) is None
    (store.folder / f".writing-{'c' * 64}-x").mkdir()
    removed, freed = store.clean()
    assert removed == 0
    assert freed > 0
    assert not list(store.folder.glob(".writing-*"))
    assert not list(store.folder.glob("damaged/*"))


def test_an_object_store_through_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path / 'bucket'}"
    monkeypatch.setenv("COMPRESS_MIRROR", str(tmp_path / "here"))
    Store(url).put(KEY, lambda folder: {"bytes": (folder / "x").write_bytes(b"12")})
    monkeypatch.setenv("COMPRESS_MIRROR", str(tmp_path / "there"))
    entry = Store(url).get(KEY)
    assert entry is not None
    assert (entry.folder / "x").read_bytes() == b"12"
    assert str(entry.folder).startswith(str(tmp_path / "there"))
    (tmp_path / "bucket" / ("d" * 64)).mkdir()  # another machine is still copying into it
    assert Store(url).get("d" * 64) is None
    copy = tmp_path / "bucket" / KEY / "x"
    copy.write_bytes(b"34")  # what is damaged there is not believed, and is replaced
    monkeypatch.setenv("COMPRESS_MIRROR", str(tmp_path / "elsewhere"))
    assert Store(url).get(KEY) is None
    Store(url).put(KEY, lambda folder: {"bytes": (folder / "x").write_bytes(b"12")})
    assert copy.read_bytes() == b"12"
    Store(url).drop(KEY)
    assert Store(url).get(KEY) is None


def test_what_is_claimed_is_claimed_once(store: Store) -> None:
    with store.claim(KEY) as ours:
        with store.claim(KEY) as theirs:
            assert (ours, theirs) == (True, False)
        with store.claim("1" * 64) as other:
            assert other
    with store.claim(KEY) as again:
        assert again


def test_without_locks_both_compute_and_other_errors_are_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    for number in (errno.ENOLCK, errno.ENOSYS):
        refuse(number)
        with store.claim(KEY) as ours, store.claim(KEY) as theirs:
            assert ours
            assert theirs
    refuse(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), store.claim(KEY):
        pass


def test_decoded_images_count_and_are_cleaned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cache = PixelCache(tmp_path / FOLDER, "key", 1000, (8, 8, 3))
    cache.write(0, b"m", np.ones((8, 8, 3), np.uint8))
    [pixels] = (tmp_path / FOLDER).glob("*.pixels")
    assert pixels.stat().st_size == 192_000
    count, used = store.size()
    assert count == 0
    assert 192 <= used < 192_000, "holes take no room"
    assert store.clean(older_than=3600)[0] == 0
    assert pixels.exists()
    removed, freed = store.clean(keep_bytes=0)
    assert removed == 1
    assert freed == used
    assert not list((tmp_path / FOLDER).iterdir())
    assert cache.read(0, b"m", np.zeros((8, 8, 3), np.uint8)), "who has it open reads on"
