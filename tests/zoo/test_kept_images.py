"""Decoded images that are kept: once for all runs, and ahead of who reads them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_folders import folder_of_photos, noise

from compress.benchmark.execute.run_spec import Limits
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.benchmark.run import RunOptions, run_plan
from compress.errors import UserError
from compress.recommender.lab import opened
from compress.system.pixel_cache import cached_sets
from compress.tasks.base import Subset
from compress.zoo import image_files
from compress.zoo.data import load_data
from compress.zoo.image_files import decode


def test_an_image_is_decoded_once_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, decoded = folder_of_photos(tmp_path / "photos"), []

    def counted(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path)
        return decode(path, *rest)

    monkeypatch.setattr(image_files, "decode", counted)
    data = load_data(f"imagefolder:{root}", size=8)
    plain = [pixels for (pixels,), _ in data.test.batches(5)]
    assert len(decoded) == (probe := 4) + 12
    for _ in range(2):  # the second reads what the first has left
        data = load_data(f"imagefolder:{root}", size=8)
        assert image_files.keep_pixels(data, tmp_path / "store") == ""
        for _ in range(2):
            kept = [pixels for (pixels,), _ in data.test.batches(5)]
            assert all(map(torch.equal, plain, kept))
    assert len(decoded) == 3 * probe + 2 * 12, "once without the cache, once with it"
    decoded.clear()
    noise(seed=77).save(root / "test" / "dog" / "1.png")
    changed = [pixels for (pixels,), _ in data.test.batches(5)]
    assert decoded == [root / "test" / "dog" / "1.png"]
    assert not torch.equal(changed[1], plain[1])
    wider = load_data(f"imagefolder:{root}", size=9)
    image_files.keep_pixels(wider, tmp_path / "store")
    assert next(wider.test.batches(1))[0][0].shape == (1, 3, 9, 9)
    (root / "test" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*0\.png"):
        list(data.test.batches(5))


def test_the_set_of_before_makes_room_when_files_are_added(tmp_path: Path) -> None:
    root, store = folder_of_photos(tmp_path / "photos"), tmp_path / "store"
    limit = 25 * 3 * 8**2  # 24 images were there, and one is added

    def kept() -> tuple[str, set[Path]]:
        data = load_data(f"imagefolder:{root}", size=8)
        said = image_files.keep_pixels(data, store, limit=limit)
        list(data.train.batches(5))
        return said, {*cached_sets(store)}

    said, before = kept()
    assert (said, len(before)) == ("", 2)
    noise(seed=99).save(root / "train" / "cat" / "new.png")
    said, after = kept()
    assert (said, len(after)) == ("", 2)
    assert len(before & after) == 1, "the test images are those of before"
    assert kept() == ("", after)


class Stopped(Exception):
    """A run went on to its first process."""


def test_that_images_are_not_kept_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> Any:
        raise Stopped

    name = f"imagefolder:{folder_of_photos(tmp_path / 'photos', count=10)}"
    suite = Suite("s", name, "mlp(width=8)", ("train(epochs=1)",), options={"size": 8})
    plan = make_plan(suite, device="cpu", step_threads=1)
    for limit, progress in ((0, True), (0, False), (None, True)):
        options = RunOptions(Limits(pixels=limit), executor=stopped, progress=progress)
        place = tmp_path / f"{limit} {progress}"
        with pytest.raises(Stopped):
            run_plan(plan, place / "run", options)
        with pytest.raises(Stopped), opened(plan, place / "lab", place, 1.0, options=options):
            pass
        said = [
            "40 of 40 images of 8x8 are decoded anew whenever they are used: they take 3.84 kB, "
            "and the pixel cache may take 0 B"
        ]
        found = capsys.readouterr().err.splitlines()
        assert found == (2 * said if limit == 0 and progress else []), (limit, progress)


def test_images_are_decoded_ahead_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of_photos(tmp_path / "photos")
    data = load_data(f"imagefolder:{root}", size=8)
    plain = [pixels for (pixels,), _ in data.test.batches(5)]
    bad = data.test.files[4]  # type: ignore[attr-defined]
    decoded: list[Path] = []

    def counted(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path)
        if path == bad:
            raise UserError(f"cannot read the image {path}")
        return decode(path, *rest)

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 60
        while len(decoded) < count and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(image_files, "decode", counted)
    with image_files.decoding_ahead(data.test):
        pass
    assert not decoded, "there is nowhere to keep them"
    image_files.keep_pixels(data, tmp_path / "store")
    with image_files.decoding_ahead(Subset(data.test, torch.tensor([7, 3, 4]))):
        wait_for(3)
    files = data.test.files  # type: ignore[attr-defined]
    assert sorted(decoded) == sorted([files[7], files[3], bad])
    with image_files.decoding_ahead(data.test):
        wait_for(3 + 10)
    assert len(decoded) == 3 + 10, "what is kept is not decoded again, what failed is tried"
    monkeypatch.setattr(image_files, "decode", decode)
    again = [pixels for (pixels,), _ in data.test.batches(5)]
    assert all(map(torch.equal, plain, again))


def test_decoding_ahead_ends_with_what_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(f"imagefolder:{folder_of_photos(tmp_path / 'photos')}", size=8)
    image_files.keep_pixels(data, tmp_path / "store")
    begun, go_on = threading.Event(), threading.Event()
    decoded: list[Path] = []

    def slow(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path)
        begun.set()
        go_on.wait(60)
        return decode(path, *rest)

    monkeypatch.setattr(image_files, "decode", slow)
    threading.Timer(0.2, go_on.set).start()
    with image_files.decoding_ahead(data.test):
        assert begun.wait(60)
    assert 1 <= len(decoded) <= image_files.AHEAD
