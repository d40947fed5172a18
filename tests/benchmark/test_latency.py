"""What timing keeps: raw seconds, and a wrong answer costs the name, a dead process does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_fixtures import small_digits
from written import write_onnx

from compress.benchmark.measure import latency
from compress.benchmark.store.outputs import TIMING_INPUTS, Outputs, slug
from compress.errors import UserError
from compress.results.latency import read_timings
from compress.results.log import Stage
from compress.results.record import Key, Record
from compress.timing.collect import TimingRequest
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import CONTROL, LEVELS, Launched, RawTimings
from compress.timing.setting import DEFAULT
from compress.timing.worker import DIFFERENT


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    made = Outputs(tmp_path, (0,))
    with made.lock:
        yield made


def records(outputs: Outputs, *chains: str) -> dict[Key, Record]:
    made = {}
    for chain in chains:
        path = write_onnx(outputs, chain, 0, b"onnx", ok=True)
        files = {"onnx": str(path.relative_to(outputs.folder))}
        made[chain, 0] = Record(chain, 0, "ok", hashes={"onnx": "f00"}, files=files)
    return made


def time(
    outputs: Outputs,
    given: dict[Key, Record],
    error: str = "",
    failure: str = "",
    collector: Any = None,
) -> tuple[list[Record], Stage]:
    """Time files in 2 ms each; `error` is what all but the baseline have."""

    def fake(request: TimingRequest, **options: Any) -> RawTimings:
        baseline, names = request.baseline, (*request.files, CONTROL)

        def series(name: str) -> dict[str, Any]:
            wrong = error if name not in (baseline, CONTROL) else ""
            return {"error": wrong, "medians": [0.002] * 3, "calls": [[0.002]] * 3}

        batches = {str(n): {name: series(name) for name in names} for n in (1, 32)}
        launched = [Launched(threads, batches, failure) for threads in (0, 1)]
        return RawTimings(
            (*names, *LEVELS), baseline, DEFAULT, 1, tuple(launched), 1.0, {"cpu": "x"}
        )

    for record in given.values():
        if record.status == "ok":
            answers = {"timed_logits": np.zeros((64, 10))}
            outputs.sidecar(outputs.model(*record.key).name, answers)
    plan: Any = SimpleNamespace(
        data=small_digits(),
        threads=1,
        suite=SimpleNamespace(timing_seconds=1.0, timings=("cpu_batch32", "cpu", "cpu1")),
    )
    stage, caught = next(latency.time_records(given, plan, outputs, collector or fake))
    return caught, stage


def test_raw_seconds_are_kept_as_other_machines_send_them(outputs: Outputs) -> None:
    caught, stage = time(outputs, records(outputs, "baseline", "a()"))
    assert caught == []
    assert (stage.machine, stage.runtime, stage.reason) == ("", "", "")
    assert stage.settings == DEFAULT, "in the order of the table"
    assert stage.environment == {"cpu": "x"}
    models, timings = read_timings(outputs.folder, stage)
    assert models == {"a() [seed 0]": "f00", "baseline [seed 0]": "f00"}
    assert timings["a() [seed 0]", "cpu1"].p50_ms == 2.0


def test_other_outputs_while_timed_cost_the_name(outputs: Outputs) -> None:
    wrong = f"{DIFFERENT} (by 31%)"
    (caught,), stage = time(outputs, records(outputs, "baseline", "a()"), wrong)
    assert stage.file
    assert (caught.chain, caught.status) == ("a()", "unverified")
    assert caught.error == f"while timed: {wrong}"
    assert "onnx" not in caught.files
    outputs.withdraw(caught)
    assert [path.name for path in outputs.model("a()", 0).iterdir()] == ["unverified.onnx"]


def test_a_dead_timing_process_leaves_sound_files_sound(outputs: Outputs) -> None:
    dead = "the timing process was killed by signal 9"
    caught, stage = time(outputs, records(outputs, "baseline", "a()"), failure=dead)
    assert caught == []
    _, timings = read_timings(outputs.folder, stage)
    assert timings["a() [seed 0]", "cpu"].error == dead


def test_without_a_baseline_there_is_a_reason(outputs: Outputs) -> None:
    caught, stage = time(outputs, records(outputs, "a()"))
    assert (caught, stage.file) == ([], "")
    assert stage.reason == "there is no sound baseline file"


def test_nodes_that_are_lost_are_the_reason(outputs: Outputs) -> None:
    def lost(*_: Any, **__: Any) -> RawTimings:
        raise WorkerFailed("all nodes are lost")

    caught, stage = time(outputs, records(outputs, "baseline"), collector=lost)
    assert (caught, stage.reason, stage.settings) == ([], "all nodes are lost", DEFAULT)


def test_what_was_timed_so_far_is_removed_once_the_whole_is_kept(outputs: Outputs) -> None:
    kept = outputs.folder / "raw" / latency.CHECKPOINT.format("")
    kept.parent.mkdir()
    kept.write_text("of a run that was stopped")
    time(outputs, records(outputs, "baseline"))
    assert not kept.exists()
    assert (kept.parent / "timing.json").exists()


def test_inputs_and_answers_are_kept_for_other_machines(outputs: Outputs) -> None:
    time(outputs, records(outputs, "baseline", "a()"))
    kept = outputs.stored(TIMING_INPUTS)
    assert set(kept) == {"input_0", "expected/baseline [seed 0]", "expected/a() [seed 0]"}
    assert len(kept["input_0"]) == len(kept["expected/a() [seed 0]"]) == 64


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Outputs(tmp_path, (0,)).lock,
        pytest.raises(UserError, match="another run is writing"),
    ):
        Outputs(tmp_path, (0,))
    with Outputs(tmp_path, (0,)).lock:
        pass  # it is free again


def test_slugs_are_readable_different_and_harmless() -> None:
    assert slug("baseline", 0, (0,)) == "baseline"
    assert slug("baseline", 3, (0, 3)) == "baseline-seed3"
    texts = ["quantize()", "quantize(method='entropy')", "../../etc", "a" * 500, "é() -> b()"]
    names = [slug(text, 0, (0,)) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(len(name) < 80 and "/" not in name and ".." not in name for name in names)
    assert names[0].startswith("quantize-")
