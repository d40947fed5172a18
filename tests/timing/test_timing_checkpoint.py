"""A collection that was stopped and started again ends as one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import SAMPLES, Machine

from compress.timing import checkpoint as kept_module
from compress.timing.checkpoint import Checkpoint, question
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings

EFFORT = Effort(seconds=0.001)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name in ("base", "fast"):
        (tmp_path / name).write_text(f"the file {name}")
    return {name: tmp_path / name for name in ("base", "fast")}


def machine() -> Machine:
    return Machine({"base": 0.004, "fast": 0.001}, rounds=3)


def timed(
    files: dict[str, Path],
    checkpoint: Path | None,
    machine: Machine,
    launch: Callable[..., None] | None = None,
    **changes: Any,
) -> RawTimings:
    values: dict[str, Any] = {
        "baseline": "base",
        "effort": EFFORT,
        "threads": 2,
        "settings": ("cpu", "cpu1"),
        **changes,
    }
    return collect(
        TimingRequest(files, SAMPLES, dict.fromkeys(files, SAMPLES[0]), **values),
        checkpoint=checkpoint,
        launch=launch or machine.launch,
        clock=machine.clock,
    )


def stopping(machine: Machine, after: int) -> Callable[..., None]:
    """Return a launch that is interrupted once it has run `after` processes."""

    def launch(*job: Any) -> None:
        if len(machine.jobs) == after:
            raise KeyboardInterrupt
        machine.launch(*job)

    return launch


@pytest.mark.parametrize("after", [0, 1, 2, 3, 7, 9])
def test_it_goes_on_where_it_was_stopped(
    files: dict[str, Path], tmp_path: Path, after: int
) -> None:
    undisturbed = timed(files, None, machine())
    checkpoint, first, second = tmp_path / "kept.jsonl", machine(), machine()
    with pytest.raises(KeyboardInterrupt):
        timed(files, checkpoint, first, stopping(first, after))
    found = timed(files, checkpoint, second)
    assert found.to_json() == {**undisturbed.to_json(), "seconds": pytest.approx(found.seconds)}
    assert found.seconds == pytest.approx(undisturbed.seconds)
    # Half a turn is not taken: of its two processes one would have been run at another time.
    assert len(second.jobs) == 10 - after // 2 * 2


def test_it_may_be_stopped_twice(files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, machines = tmp_path / "kept.jsonl", [machine(), machine(), machine()]
    for one in machines[:2]:
        with pytest.raises(KeyboardInterrupt):
            timed(files, checkpoint, one, stopping(one, 3))
    found = timed(files, checkpoint, machines[2])
    assert [len(one.jobs) for one in machines] == [3, 3, 6]
    assert found.launched == timed(files, None, machine()).launched


def test_what_is_whole_is_not_timed_again(files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, again = tmp_path / "kept.jsonl", machine()
    first = timed(files, checkpoint, machine())
    assert timed(files, checkpoint, again).launched == first.launched
    assert again.jobs == []


def test_seconds_of_another_question_are_dropped(files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "kept.jsonl"

    def processes(**changes: Any) -> int:
        one = machine()
        timed(files, checkpoint, one, **changes)
        return len(one.jobs)

    assert processes() == 10
    assert processes(settings=("cpu", "cpu1", "cpu_batch32")) == 10
    assert processes(threads=3) == 10
    assert processes(seed=1) == 10
    assert processes(baseline="fast") == 10
    assert processes(effort=replace(EFFORT, block_seconds=0.005)) == 10
    files["fast"].write_text("another file")
    assert processes(effort=replace(EFFORT, block_seconds=0.005)) == 10
    assert processes(effort=replace(EFFORT, block_seconds=0.005)) == 0


def test_a_half_written_line_is_passed_over(files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, again = tmp_path / "kept.jsonl", machine()
    timed(files, checkpoint, machine())
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) - 40])
    timed(files, checkpoint, again)
    assert len(again.jobs) == 2


def test_a_process_that_died_is_tried_again(files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, again = tmp_path / "kept.jsonl", machine()

    def dies(*_: Any) -> None:
        raise WorkerFailed("killed")

    assert all(part.failure for part in timed(files, checkpoint, machine(), dies).launched)
    found = timed(files, checkpoint, again)
    assert len(again.jobs) == 10
    assert not any(part.failure for part in found.launched)


def test_a_question_is_about_content_names_order_and_inputs(files: dict[str, Path]) -> None:
    base = question(files, SAMPLES, {})
    assert base == question({**files}, [SAMPLES[0].copy()], {})
    turned = dict(reversed(files.items()))
    others = [
        question(turned, SAMPLES, {}),
        question({"base": files["base"], "other": files["fast"]}, SAMPLES, {}),
        question(files, [SAMPLES[0] + 1], {}),
        question(files, [SAMPLES[0].reshape(16, 40)], {}),
        question(files, [SAMPLES[0].view(np.int32)], {}),
        question(files, SAMPLES, {"seed": 1}),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_what_other_code_found_is_not_taken_for_what_this_would_find(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    shutil.copytree(kept_module.CODE, code)
    before = question(files, SAMPLES, {})
    monkeypatch.setattr(kept_module, "CODE", code)
    assert question(files, SAMPLES, {}) == before
    (code / "worker.py").write_text("# mended")
    assert question(files, SAMPLES, {}) != before


def test_without_a_path_nothing_is_kept() -> None:
    book = Checkpoint(None, "")
    book.add({"threads": 1})
    assert book.read() == []
