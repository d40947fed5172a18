"""A search on a Ray cluster: trials side by side, and what it finds is as sound as elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.recommender.lab import BenchLab
from compress.recommender.measured import IDLE, OK, Measured
from compress.system.files import sha256_file


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'compress-models[cluster]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_trials_are_made_side_by_side(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = BenchLab.measure

    def spy(lab: BenchLab, chains: Sequence[str], deadline: float) -> list[Measured]:
        asked.append(len(chains))
        return real(lab, chains, deadline)

    monkeypatch.setattr(BenchLab, "measure", spy)
    space = tmp_path / "space.toml"
    space.write_text("[prune_weights]\nsparsity = [0.2, 0.3, 0.4]\n[quantize]\nmax_drop = 'none'\n")
    out = tmp_path / "best"
    found = compress.recommend(
        out,
        data="digits",
        model="mlp(width=32)",
        baseline="train(epochs=2)",
        max_drop=10.0,
        by="size",
        only=("prune_weights", "quantize"),
        space=space,
        budget="20m",
        trials=3,
        timing_seconds=0.5,
        step_threads=1,
        threads=1,
        executor="ray",
        progress=False,
    )
    assert max(asked) == 2, "each of the two nodes has room for one"
    assert len(found.trials) == 3
    assert [trial.drawn for trial in found.trials[:2]] == ["warm start"] * 2
    assert {trial.state for trial in found.trials} <= {OK, IDLE}  # zeros alone make no file smaller
    assert found.winner
    assert json.loads((out / "best.json").read_text())["sha256"] == sha256_file(out / "model.onnx")
    assert {row["status"] for row in found.rows} == {"ok"}
