"""Archives of image folders: unpacked once, in their own folder or not at all."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.errors import UserError
from compress.zoo import archive
from compress.zoo.archive import unpacked
from compress.zoo.data import load_data


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


IMAGES = {
    f"photos/{part}/{kind}/{number}.png": png(10 * number + (100 if kind == "cat" else 0))
    for part in ("train", "test")
    for kind in ("cat", "dog")
    for number in range(12)
}


def packed(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as made:
            for name, content in files.items():
                made.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz"])
def test_an_archive_of_images_is_a_data_source(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / name, IMAGES)
    root = tmp_path / "root"
    data = load_data(f"imagefolder:{path}", root, size=8)
    assert data.task.classes == ("cat", "dog")
    assert len(data.test) == 24
    [place] = (root / "unpacked").iterdir()
    before = place.stat().st_mtime_ns
    assert load_data(f"imagefolder:{path}", root, size=8).fingerprint == data.fingerprint
    assert place.stat().st_mtime_ns == before, "unpacked once"


NAMES = ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = packed(tmp_path / kind, {"train/a/1.png": b"1", name: b"2"})
    with pytest.raises(UserError, match="outside its folder"):
        unpacked(path, tmp_path / "root")
    assert not list(tmp_path.rglob("out.png"))
    assert list((tmp_path / "root" / "unpacked").iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        member = tarfile.TarInfo("train/link")
        member.type, member.linkname = kind, "../../../etc/passwd"
        made.addfile(member)
    with pytest.raises(UserError, match="is no file or folder"):
        unpacked(tmp_path / "x.tar", tmp_path / "root")


def test_what_unpacks_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_RATIO", 2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("train/a/1.png", bytes(archive.MOST_RATIO * (1 << 20) + 1))
    with pytest.raises(UserError, match="out of all proportion"):
        unpacked(tmp_path / "x.zip", tmp_path / "root")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"rubbish" * 100)
    with pytest.raises(UserError, match="is refused"):
        unpacked(tmp_path / name, tmp_path / "root")
    whole = packed(tmp_path / f"whole-{name.replace('.tar', '.tgz')}", IMAGES).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is refused"):
        unpacked(tmp_path / name, tmp_path / "root")
