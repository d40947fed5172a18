"""`--dry-run`: every step once, what is done, and what is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import compress
from compress import api
from compress.api import preview
from compress.benchmark import run as bench
from compress.report import write
from compress.results.log import Stage

CHAINS = (
    "train(epochs=2) -> prune_weights(sparsity=0.5)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=1)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=1) -> quantize()",
)
OPTIONS = {"chain": CHAINS, "model": "mlp(width=8)", "progress": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute steps alone, in this process: no file is timed, and no report written."""
    monkeypatch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])
    monkeypatch.setattr(bench, "memory_records", lambda *_: [])
    monkeypatch.setattr(write, "write_reports", lambda *_: None)
    monkeypatch.setattr(api, "start_base", lambda: None)
    monkeypatch.delattr(os, "fork")


def lines(text: str) -> dict[str, str]:
    """Return by a line's text how far it is."""
    found = {}
    for line in text.splitlines():
        head, _, tail = line.rpartition("  ")
        if head:
            found[head.strip()] = tail.strip()
    return found


def test_a_tree_of_what_is_done_and_left(tmp_path: Path) -> None:
    before = preview(out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists(), "it computes and writes nothing"
    assert set(lines(before).values()) == {"left, unknown"}
    assert sum("prune_weights(sparsity=0.5)" in line for line in before.splitlines()) == 4
    assert [line for line in before.splitlines() if line.startswith("  train(epochs=2)")]
    assert "4 rows, 8 results, 8 left: 8 whose time no earlier run tells" in before
    assert all(len(line) <= 100 for line in before.splitlines())

    results = compress.run(out=tmp_path / "out", **OPTIONS)
    assert results.ok, results.rows
    after = preview(out=tmp_path / "out", **OPTIONS)
    assert set(lines(after).values()) == {"done"}
    assert "4 rows, all computed" in after

    longer = CHAINS[2].replace("finetune(epochs=1)", "finetune(epochs=30)")
    changed = preview(out=tmp_path / "out", **{**OPTIONS, "chain": (*CHAINS[:2], longer)})
    found = lines(changed)
    assert found["prune_weights(sparsity=0.5)"] == found["finetune(epochs=1)"] == "done"
    # From the epoch that was done, and the file that was written.
    assert found["finetune(epochs=30)"].startswith("left, about")
    assert found["quantize()"].startswith("left, about")


def test_one_row_is_in_the_singular(tmp_path: Path) -> None:
    text = preview(out=tmp_path, **{**OPTIONS, "chain": "train(epochs=2)"})
    assert "1 row, 2 results, 2 left" in text


def test_seeds_are_told_apart(tmp_path: Path) -> None:
    text = preview(out=tmp_path, **OPTIONS, seeds=(0, 1))
    assert "run, seed 0" in text
    assert "run, seed 1" in text
    assert "8 rows, 16 results" in text
