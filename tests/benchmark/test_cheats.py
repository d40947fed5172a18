"""A technique that cheats is a row that says so. The cheats are those of benchmarks/measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_fixtures import small_digits

import compress
from compress import techniques

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "measurement"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        from cheating import CHEATS
        from installed import installed

        place = tmp_path_factory.mktemp("site")
        patch.syspath_prepend(str(installed(place, FOLDER / "cheating.py", CHEATS)))
        techniques.techniques.cache_clear()
        found = compress.run(
            data=small_digits(),
            model="mlp",
            chain=["train(epochs=1)", *(f"{cls.name()}()" for cls in CHEATS)],
            out=tmp_path_factory.mktemp("cheats"),
            progress=False,
            timings=("cpu",),
            timing_seconds=0.1,
        )
        yield {row["chain"]: row for row in found.rows}
    techniques.techniques.cache_clear()
    for name in ("cheating", "installed"):
        sys.modules.pop(name, None)


def test_the_honest_baseline_is_ok(results) -> None:
    assert results["baseline"]["status"] == "ok"


def test_a_model_that_answers_from_memory_fails(results) -> None:
    row = results["cache_outputs()"]
    assert row["status"] == "failed"
    assert "remembers earlier inputs" in row["error"]


def test_a_constant_file_is_not_deployable_and_not_timed(results) -> None:
    row = results["constant_file()"]
    assert row["status"] == "unverified"
    assert "the same outputs for every item" in row["error"]
    assert "onnx_path" not in row
    assert "cpu_ms_p50" not in row


def test_a_file_that_computes_next_to_nothing_is_not_deployable_either(results) -> None:
    row = results["nearly_constant_file()"]
    assert row["accuracy"] < 0.3
    assert row["status"] == "unverified"
    assert "(nearly) the same outputs for every item" in row["error"]
    assert "cpu_ms_p50" not in row


def test_weights_of_zero_are_told_by_their_answers(results) -> None:
    row, honest = results["skip_on_the_clock()"], results["baseline"]
    # Its file is sound, for it computes what its module does: the same for every item.
    assert row["status"] == "ok"
    assert row["nonzero_params"] == 0
    assert row["accuracy"] < 0.3 < honest["accuracy"]
    assert row["accuracy_verdict"] == "worse"
