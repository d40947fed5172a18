"""Batch norms of several processes that share a batch do what those of one do with all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import norm_worker
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress.training.synchronized import SynchronizedBatchNorms, has_batch_norms

COUNT = 2
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what two processes left."""
    folder = tmp_path_factory.mktemp("synchronized")
    command = [sys.executable, norm_worker.__file__]
    env = {"PYTHONPATH": ":".join([str(TESTS), *sys.path])}
    workers = [
        subprocess.Popen([*command, str(rank), str(COUNT), str(folder)], env=env)
        for rank in range(COUNT)
    ]
    try:
        # A process that waits for one which gave up would wait for days.
        assert [worker.wait(120) for worker in workers] == [0] * COUNT
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.mark.parametrize("name", list(norm_worker.layers()))
def test_parts_of_a_batch_are_normalized_as_the_whole_is(name: str, left: Path) -> None:
    of_one = norm_worker.passes()
    alone = {key: value for key, value in of_one.items() if key.startswith(f"{name} ")}
    shared = [load_file(left / f"{rank}.safetensors") for rank in range(COUNT)]
    # Of 8 bits, sums of which the two round apart; of inputs near 1,000, a last digit is 6e-5.
    loose = {"coarse": 2e-2, "far": 1e-2}.get(name.partition(" ")[0], 1e-5)
    assert alone
    for key, whole in alone.items():
        for rank in range(COUNT):
            wanted = whole[rank::COUNT] if " part " in key else whole
            torch.testing.assert_close(shared[rank][key], wanted, rtol=loose, atol=loose)
        if " part " not in key:
            assert torch.equal(shared[0][key], shared[1][key]), "all processes have the same"


@pytest.mark.parametrize("when", ["forwards", "backwards"])
def test_memory_that_runs_out_in_one_process_ends_the_pass_in_all(when: str, left: Path) -> None:
    """Between two batch norms, of which the other process waits at the second."""
    rows = [json.loads((left / f"{when}-{rank}.json").read_text()) for rank in range(COUNT)]
    assert [row["micro_batches"] for row in rows[0]] == [2]
    assert [row["micro_batches"] for row in rows[1]] == [2]
    assert rows[0][0]["error"] == "memory ran out in another process"
    assert rows[1][0]["error"] == "out of memory"
    weights = [load_file(left / f"{when}-{rank}.safetensors") for rank in range(COUNT)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_single_value_has_no_variance() -> None:
    layer = nn.BatchNorm1d(3)
    with SynchronizedBatchNorms(), pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("module", "has"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), True),
        (nn.BatchNorm1d(2, track_running_stats=False), True),
        (norm_worker.Own(), True),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)), False),
    ],
)
def test_what_counts_as_a_batch_norm(module: nn.Module, has: bool) -> None:
    assert has_batch_norms(module) == has
