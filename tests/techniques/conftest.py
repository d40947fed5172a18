"""What tests of single techniques share."""

from __future__ import annotations

import pytest
from factorized_nets import TASK, clock

from compress.techniques import timed_files


@pytest.fixture
def weights_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take weights for seconds, until a test says otherwise."""
    monkeypatch.setattr(timed_files, "LEAST_MACS", 0)
    monkeypatch.setattr(timed_files, "seconds_of", clock(0, []))


@pytest.fixture
def prepared_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TASK), "prepare", lambda self, raw, device, rng=None: raw)
