"""The queue of GPU proofs: what is finished is not begun again, what was ended goes on."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
COUNT = "import pathlib, sys; p = pathlib.Path(sys.argv[1]) / 'times'; p.open('a').write('x')"
SLOW = f"{COUNT}\nimport time\nif len(p.read_text()) < 2: time.sleep(60)"


@pytest.fixture(scope="module")
def queue():
    # By another name: the standard library has a module of this one.
    spec = importlib.util.spec_from_file_location("gpu_queue", FOLDER / "queue.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_queue"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_queue"]


def test_what_is_finished_is_kept_and_what_was_ended_goes_on(
    queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "GRACE", 0.5)
    monkeypatch.setattr(queue, "LEAST", 0.5)
    proofs = [
        queue.Proof("quick", 1, ("-c", COUNT, "{out}")),
        queue.Proof("wrong", 1, ("-c", f"{COUNT}\nraise SystemExit(3)", "{out}")),
        queue.Proof("slow", 1, ("-c", SLOW, "{out}")),
        queue.Proof("late", 1, ("-c", COUNT, "{out}")),
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    queue.run_queue(proofs, first, 3.0, dict(os.environ))
    state = {name: one["status"] for name, one in queue.read_state(first).items()}
    assert state == {"quick": "done", "wrong": "failed", "slow": "unfinished"}
    parts = queue.pack(first)
    assert [part.name for part in parts] == ["part-0"]
    queue.unpack(first / "parts", second)
    queue.run_queue(proofs, second, 30.0, dict(os.environ))
    state = {name: one["status"] for name, one in queue.read_state(second).items()}
    assert state == {"quick": "done", "wrong": "failed", "slow": "done", "late": "done"}
    times = {proof.name: (second / proof.name / "times").read_text() for proof in proofs}
    assert times == {"quick": "x", "wrong": "xx", "slow": "xx", "late": "x"}
    assert queue.read_state(second)["slow"]["seconds"] > 1


def test_results_are_packed_without_stores_where_they_are_large(
    queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PART", 4000)
    (tmp_path / "a" / ".steps").mkdir(parents=True)
    (tmp_path / "a" / ".steps" / "weights").write_bytes(os.urandom(50_000))
    (tmp_path / "a" / "table.md").write_bytes(os.urandom(9_000))
    (tmp_path / "queue.json").write_text("{}")
    parts = queue.pack(tmp_path)
    assert 2 <= len(parts) <= 8
    assert all(part.stat().st_size <= 4000 for part in parts)
    queue.unpack(tmp_path / "parts", tmp_path / "again")
    names = {
        path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*")
    }
    assert names == {"a", "a/table.md", "queue.json"}
    with pytest.raises(SystemExit, match="has neither"):
        queue.unpack(tmp_path / "a", tmp_path / "b")


def test_every_proof_names_what_is_there(queue) -> None:
    root = FOLDER.parents[1]
    for proof in queue.QUEUE:
        files = [word for word in proof.words if word.endswith((".py", ".toml"))]
        assert all((root / file).is_file() for file in files), proof
    assert len({proof.name for proof in queue.QUEUE}) == len(queue.QUEUE)


def test_what_is_missing_is_named_before_any_proof(queue, tmp_path: Path, monkeypatch) -> None:
    assert queue.missing(dict(os.environ)) == []
    monkeypatch.setattr(queue, "FOR_TESTS", ("pytest", "no-such-thing"))
    monkeypatch.setattr(sys, "argv", ["queue.py", "--seconds", "60", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"not installed here: no-such-thing\. .*\n.*pip download"):
        queue.main()
    assert not list(tmp_path.glob("*.log"))
