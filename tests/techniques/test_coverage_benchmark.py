"""The time limit of the coverage matrix (`benchmarks/pruning/`)."""

from __future__ import annotations

import time

import pytest
from benchmark_modules import benchmark


def test_a_time_limit_is_not_taken_for_an_error_of_the_models_own_code() -> None:
    plain = benchmark("pruning", "plain")
    begun = time.process_time()

    def forward() -> None:
        while time.process_time() < begun + 60:
            pass

    def careful() -> str:
        try:
            forward()
        except Exception:  # as techniques do, whatever a foreign forward raises
            return "stays whole"
        return "done"

    with pytest.raises(TimeoutError, match=r"not done within 0\.1 s"), plain.limited(0.1):
        careful()
