"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("COMPRESS_DATA_ROOT") or REPOSITORY.parent / "shared" / "data")

# How long an example takes says how busy the machine is.
settings.register_profile(
    "any machine", suppress_health_check=[HealthCheck.too_slow], deadline=None
)
settings.load_profile("any machine")


# Begun first, so that no process works on one of them alone at the end.
LONG = ("test_weights.py", "test_ray_executor.py", "test_resume.py", "test_local_executor.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and trained weights; skips where there is none."""
    if not (SHARED / "weights").is_dir():
        pytest.skip(f"needs real data and weights, and {SHARED} has none (COMPRESS_DATA_ROOT)")
    return SHARED
