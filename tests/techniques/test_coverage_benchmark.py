"""What the coverage matrix (`benchmarks/pruning/`) relies on."""

from __future__ import annotations

import time

import pytest
import torch
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


def test_channels_of_a_norm_are_told_apart_by_weight_and_bias() -> None:
    """Neither by one of them alone nor by a sum of both: 0 + 1000 * 0.125 is 125 + 1000 * 0."""
    references = benchmark("pruning", "references")
    weight = torch.tensor([0.0, 125.0, 3.0, 3.0])
    bias = torch.tensor([0.125, 0.0, 1.0, 2.0])
    for kept in ([1, 3], [0, 2], [1, 2, 3]):
        before, after = (
            {"weight": weight[rows], "bias": bias[rows]} for rows in ([0, 1, 2, 3], kept)
        )
        wide = (references._wide(one, "weight") for one in (before, after))
        found = references.kept_along(*wide, 0)
        assert found.nonzero().flatten().tolist() == kept
