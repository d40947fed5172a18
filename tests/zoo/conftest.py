"""What several tests of data and models have."""

from __future__ import annotations

from pathlib import Path

import pytest
from photo_folders import folder_of_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A small folder of photographs."""
    return folder_of_photos(tmp_path / "photos")
