"""Runs that were killed: `compress-models report` says what they found, and what is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.api import rewrite_reports
from compress.bench import run as bench
from compress.bench.store.outputs import Outputs

CHAINS = ["prune_weights(sparsity=0.5)", "prune_weights(sparsity=0.95)"]
JUDGED = ("accuracy_delta_low", "accuracy_delta_high", "accuracy_p", "accuracy_verdict", "lost")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end, but for its timing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (500, 8, 8), dtype=np.uint8)
    classes = (images[:, :4].mean((1, 2)) > images[:, 4:].mean((1, 2))).astype(np.int64)
    data = compress.from_arrays(
        images[:400], classes[:400], images[400:], classes[400:], classes=["up", "down"]
    )
    out = tmp_path_factory.mktemp("whole")
    chains = [f"train(epochs=2) -> {chain}" for chain in CHAINS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "time_records", lambda *_: ([], {}))
        compress.run(data=data, model="mlp(width=16)", chain=chains, out=out, progress=False)
    return out


def killed(whole: Path, out: Path, rows: int) -> list[dict[str, Any]]:
    """Lay out what a run leaves that is killed after so many rows; return the whole run's rows."""
    said = list(map(json.loads, (whole / "results.jsonl").read_text().splitlines()))
    seen: dict[str, dict[str, Any]] = {}
    for line in said:
        if line["kind"] == "row":
            seen.setdefault(line["chain"], line)  # as it was when it was measured
    kept = [line for line in said if line["kind"] == "run"] + list(seen.values())[:rows]
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (out / "raw").symlink_to(whole / "raw")
    return [dict(row) for row in rewrite_reports(whole).rows]


def test_the_rows_of_a_killed_run_are_compared(whole: Path, tmp_path: Path) -> None:
    expected = killed(whole, tmp_path, 3)
    found = rewrite_reports(tmp_path).rows
    assert [row["chain"] for row in found] == ["baseline", *CHAINS]
    for row, other in zip(found[1:], expected[1:], strict=True):
        assert {key: row[key] for key in JUDGED} == {key: other[key] for key in JUDGED}
    assert "NOT FINISHED" not in (tmp_path / "table.md").read_text()
    # Written down: the answers may be removed now.
    (tmp_path / "raw").unlink()
    assert rewrite_reports(tmp_path).rows == found
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["run"] for line in lines}) == 1


def test_what_a_killed_run_has_not_got_to_is_said(whole: Path, tmp_path: Path) -> None:
    killed(whole, tmp_path, 2)
    _, pruned = rewrite_reports(tmp_path).rows
    assert pruned["accuracy_verdict"] in ("better", "worse", "indistinguishable")
    said = " ".join((tmp_path / "table.md").read_text().split())
    assert "NOT FINISHED: 1 of 3 rows is missing, and no file was timed." in said


def test_without_its_answers_a_run_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    killed(whole, tmp_path, 3)
    (tmp_path / "raw").unlink()
    before = (tmp_path / "results.jsonl").read_text()
    assert "accuracy_verdict" not in rewrite_reports(tmp_path).rows[1]
    assert (tmp_path / "results.jsonl").read_text() == before


def test_a_run_that_goes_on_is_left_alone(whole: Path, tmp_path: Path) -> None:
    killed(whole, tmp_path, 3)
    before = (tmp_path / "results.jsonl").read_text()
    running = Outputs(tmp_path, (0,))
    with running.lock:
        assert "accuracy_verdict" not in rewrite_reports(tmp_path).rows[1]
    assert (tmp_path / "results.jsonl").read_text() == before


@pytest.mark.parametrize("content", [b"", b"PK damaged"])
def test_other_or_damaged_answers_judge_nothing(
    whole: Path, tmp_path: Path, content: bytes
) -> None:
    killed(whole, tmp_path, 3)
    (tmp_path / "raw").unlink()
    shutil.copytree(whole / "raw", tmp_path / "raw")
    (tmp_path / "raw" / "baseline.npz").write_bytes(content)
    before = (tmp_path / "results.jsonl").read_text()
    assert "accuracy_verdict" not in rewrite_reports(tmp_path).rows[1]
    assert (tmp_path / "results.jsonl").read_text() == before
