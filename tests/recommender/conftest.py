"""What tests of the search share."""

from __future__ import annotations

import pytest
from made_search import made_space

from compress.recommender.space import Space


@pytest.fixture(scope="session")
def space() -> Space:
    return made_space()
