from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from compress.runtimes.base import Runtime
from compress.timing.worker import (
    DIFFERENT,
    as_candidate,
    feed_indices,
    feeds_of,
    run_job,
)

SAMPLES = [np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)]


class Session:
    """A file that multiplies its input."""

    names = ("input",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, feed):
        return self.factor * feed["input"]


class Loader(Runtime):
    """A runtime whose files are what a function makes of their paths."""

    name, title = "loader", "onnxruntime"

    def __init__(self, load) -> None:
        self.load = load

    def absent(self) -> str:
        return ""

    def versions(self):
        return {}

    def open(self, onnx, threads=0, level="default"):
        assert level == "default"
        return self.load(onnx)


@Loader
def load(path: str) -> Session:
    if path == "broken":
        raise RuntimeError("not a model")
    return Session(float(path))


def job(**candidates: str) -> dict:
    return {
        "candidates": {name: [path, "default"] for name, path in candidates.items()},
        "batches": [1, 32],
        "seconds": 0.0,
        "min_rounds": 3,
        "block_seconds": 0.0,
        "seed": 0,
    }


@pytest.mark.parametrize("module", ["worker", "collect", "summary", "cuda"])
def test_torch_stays_out_of_the_process(module):
    code = f"import compress.timing.{module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batches_are_of_the_right_length_and_rotate_through_all_samples():
    for items, batch in ((40, 1), (64, 1), (40, 32), (32, 32), (3, 8)):
        rows = feed_indices(items, batch)
        assert {len(row) for row in rows} == {batch}
        assert len(rows) >= min(items, 4) - 1
        assert set(np.concatenate(rows)) == set(range(items))


def test_later_processes_begin_with_other_inputs():
    turned, same = feeds_of(SAMPLES, 1, 47)
    assert [row[0] for row in turned] == [*range(7, 40), *range(7)]
    assert all((a[0] == SAMPLES[0][row]).all() for row, a in zip(turned, same, strict=True))


@pytest.mark.parametrize("module", ["worker", "memory"])
def test_a_process_whose_parent_is_gone_does_nothing(module, tmp_path):
    (tmp_path / "job.json").write_text("{")  # it would fail over this
    command = [sys.executable, "-m", f"compress.timing.{module}"]
    words = [str(tmp_path / "job.json"), str(tmp_path / "result.json"), "1"]
    done = subprocess.run([*command, *words], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_gives_one_answer_for_all_samples_is_caught_however_large_the_answers_are():
    constant = 100 + np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    feeds = feeds_of(SAMPLES, 1)

    class Constant:
        names = ("x",)

        def run(self, _feed):
            return constant[:1]

    found = as_candidate(Constant(), feeds, constant)
    assert found.check(0, found.call(0)) == ""
    assert found.check(1, found.call(1)).startswith(DIFFERENT)


def test_every_file_is_timed_at_every_batch_size():
    expected = {"1": SAMPLES[0], "2": 2 * SAMPLES[0]}
    found = run_job(job(float="1", int8="2"), SAMPLES, expected, load)["settings"]
    assert set(found) == {"1", "32"}
    for series in (found[batch][name] for batch in found for name in ("float", "int8")):
        assert series["error"] == ""
        assert len(series["medians"]) == len(series["calls"]) == 3


def test_a_file_that_does_not_load_does_not_stop_the_others():
    expected = {"1": SAMPLES[0]}
    found = run_job(job(float="1", bad="broken"), SAMPLES, expected, load)["settings"]
    assert found["1"]["bad"]["error"] == "onnxruntime cannot load the file: not a model"
    assert found["32"]["float"]["error"] == ""


def test_a_file_that_does_not_compute_cannot_win():
    expected = {"1": SAMPLES[0], "0": SAMPLES[0]}
    found = run_job(job(float="1", lazy="0"), SAMPLES, expected, load)["settings"]
    spread = SAMPLES[0].std(0)
    off = np.sqrt((SAMPLES[0][0] ** 2).mean() / (spread**2).mean())
    words = f"differ from the verified ones (by {off:.1%} of their spread)"
    assert words in found["1"]["lazy"]["error"]
    assert found["1"]["lazy"]["medians"] == []


def test_samples_that_do_not_suit_a_file_are_its_error():
    found = run_job(job(float="1"), SAMPLES * 2, {"1": SAMPLES[0]}, load)["settings"]
    assert "the samples do not suit the file" in found["1"]["float"]["error"]


def test_files_load_in_an_order_of_the_seed_so_that_memory_is_laid_out_anew():
    orders = []
    for seed in (1, 1, 2):
        order: list[str] = []

        def spy(path: str, order: list[str] = order) -> Session:
            order.append(path)
            return Session(1)

        names = {str(i): str(i) for i in range(8)}
        expected = dict.fromkeys(names, SAMPLES[0])
        run_job({**job(**names), "seed": seed}, SAMPLES, expected, Loader(spy))
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [str(i) for i in range(8)]


def test_every_file_is_fed_the_same_arrays():
    rows, feeds = feeds_of(SAMPLES * 2, 32)
    assert len(rows) == len(feeds)
    for row, (first, second) in zip(rows, feeds, strict=True):
        np.testing.assert_array_equal(first, SAMPLES[0][row])
        assert first.flags.c_contiguous
        np.testing.assert_array_equal(first, second)


class Caching(Session):
    """A runtime that computes once and then gives the same answer again."""

    def run(self, feed):
        if not hasattr(self, "answer"):
            self.answer = super().run(feed)
        return self.answer


def test_who_answers_from_memory_is_caught():
    expected = {"1": SAMPLES[0], "2": 2 * SAMPLES[0]}
    loads = {"1": Session(1), "2": Caching(2)}
    found = run_job(job(honest="1", caching="2"), SAMPLES, expected, Loader(loads.get))
    for batch in ("1", "32"):
        assert "differ from the verified ones" in found["settings"][batch]["caching"]["error"]
        assert found["settings"][batch]["honest"]["error"] == ""
