"""A run, its archive unpacked elsewhere, and what was found there."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packed import timings, write_run

from compress.benchmark.portable.pack import pack


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_run(monkeypatch, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def unpacked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(pack(made, folder / "pack.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="session")
def found(unpacked: Path) -> dict[str, Any]:
    return timings(unpacked)
