from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import UserError
from compress.timing import measure as measure_module
from compress.timing.cuda import cuda_onnx_latency, cuda_torch_latency
from compress.timing.environment import cpu_info, cpu_threads, environment
from compress.timing.measure import WorkerFailed, launch, measure

SAMPLES = [np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)]


def worker(seconds: dict[str, float], noise: float = 0.03, errors: dict[str, str] | None = None):
    """Return a process that makes up its times: `seconds` per item, with seeded noise."""

    def run(job_path: Path, result_path: Path, timeout: float) -> None:
        job = json.loads(job_path.read_text())
        generator = np.random.default_rng(job["seed"])
        settings = {}
        for batch in job["batches"]:
            settings[str(batch)] = {}
            shared = np.exp(generator.normal(0, 0.5, 30))
            for name in job["candidates"]:
                own = np.exp(generator.normal(0, noise, 30))
                medians = (seconds[name] * batch * shared * own).tolist()
                settings[str(batch)][name] = {
                    "error": (errors or {}).get(name, ""),
                    "block_calls": 2,
                    "medians": medians,
                    "calls": [[value, value] for value in medians],
                }
        result_path.write_text(json.dumps({"settings": settings}))

    return run


def timed(launch, **options):
    names = options.pop("names", ("base", "same", "fast"))
    return measure(
        {name: Path(name) for name in names},
        SAMPLES,
        dict.fromkeys(names, SAMPLES[0]),
        baseline="base",
        threads=2,
        launch=launch,
        **options,
    )


SECONDS = {"base": 0.004, "same": 0.004, "fast": 0.001}


def test_an_a_a_pair_is_one_within_its_interval_and_a_faster_file_is_not():
    found = timed(worker(SECONDS))
    for batch in (1, 32):
        same, fast = found["same", batch], found["fast", batch]
        assert same.low < 1 < same.high
        assert same.high - same.low < 0.1
        assert fast.speedup == pytest.approx(4, rel=0.03)
        assert fast.low <= fast.speedup <= fast.high
        assert (fast.rounds, fast.processes) == (90, 3)


def test_the_baseline_is_one_without_an_interval():
    base = timed(worker(SECONDS))["base", 1]
    assert (base.speedup, base.low, base.high) == (1, None, None)


def test_throughput_is_items_over_the_median():
    row = timed(worker(SECONDS))["base", 32]
    assert row.per_second == pytest.approx(32 / (row.p50_ms / 1e3))


def test_noise_is_flagged():
    found = timed(worker(SECONDS))
    assert found["base", 1].noisy


def test_raw_seconds_give_the_figures_again_from_a_file(tmp_path):
    found = timed(worker(SECONDS))
    np.savez(tmp_path / "raw.npz", **found.raw())
    with np.load(tmp_path / "raw.npz") as raw:
        calls = np.concatenate([raw[f"calls/1/{i}/fast"] for i in range(3)])
        assert 1e3 * np.median(calls) == pytest.approx(found["fast", 1].p50_ms)
        ratios = np.concatenate(
            [raw[f"rounds/1/{i}/base"] / raw[f"rounds/1/{i}/fast"] for i in range(3)]
        )
        assert np.median(ratios) == pytest.approx(found["fast", 1].speedup)


def test_each_process_has_a_seed_of_its_own_and_its_share_of_the_time():
    jobs = []

    def spy(job_path: Path, result_path: Path, timeout: float) -> None:
        jobs.append((json.loads(job_path.read_text()), timeout))
        worker(SECONDS)(job_path, result_path, timeout)

    timed(spy, processes=3, seconds=30, seed=7)
    assert len({job["seed"] for job, _ in jobs}) == 3
    assert {job["seconds"] for job, _ in jobs} == {10}
    assert {job["threads"] for job, _ in jobs} == {2}


def test_the_error_of_a_file_stands_with_it_and_the_others_have_figures():
    found = timed(worker(SECONDS, errors={"fast": "cannot load"}))
    assert found["fast", 1].error == "cannot load"
    assert found["fast", 1].p50_ms is None
    assert found["same", 1].speedup is not None


def test_without_a_baseline_there_are_times_but_no_speedups():
    found = timed(worker(SECONDS, errors={"base": "cannot load"}))
    assert found["same", 1].p50_ms is not None
    assert found["same", 1].speedup is None


def test_a_process_that_dies_is_named_and_the_others_count():
    started = []

    def flaky(job_path: Path, result_path: Path, timeout: float) -> None:
        started.append(job_path)
        if len(started) == 2:
            raise WorkerFailed("the timing process was killed by signal 9 (loading fast)")
        worker(SECONDS)(job_path, result_path, timeout)

    found = timed(flaky)
    assert found["fast", 1].processes == 2
    assert found.failures == (
        "process 2: the timing process was killed by signal 9 (loading fast)",
    )


def test_if_every_process_dies_every_row_says_why():
    def dead(job_path: Path, result_path: Path, timeout: float) -> None:
        result_path.write_text("{half a res")

    found = timed(dead, processes=2)
    assert "process 1 left no readable result" in found["base", 1].error
    assert found.raw() == {}


def test_wrong_calls_are_refused_before_any_process_starts():
    def never(*_):
        raise AssertionError

    with pytest.raises(UserError, match="baseline 'base' is not among"):
        timed(never, names=("fast",))
    with pytest.raises(UserError, match="at least one process"):
        timed(never, processes=0)
    with pytest.raises(UserError, match="verified logits of 'base'"):
        measure({"base": Path("b")}, SAMPLES, {}, baseline="base", launch=never)


# --- the real process: smoke tests, which assert nothing about how long anything took ---------


def linear(path: Path, weights: np.ndarray) -> Path:
    node = helper.make_node("MatMul", ["input", "w"], ["logits"])
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", weights.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_real_files_are_timed_and_a_wrong_and_a_broken_one_are_named(tmp_path):
    weights = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    candidates = {
        "base": linear(tmp_path / "base.onnx", weights),
        "again -> quantize()": linear(tmp_path / "again.onnx", weights),
        "lazy": linear(tmp_path / "lazy.onnx", 0 * weights),
        "broken": tmp_path / "broken.onnx",
    }
    expected = dict.fromkeys(candidates, SAMPLES[0] @ weights)
    found = measure(
        candidates, SAMPLES, expected, baseline="base", threads=1, processes=2, seconds=0.5
    )
    assert found.failures == ()
    for batch in (1, 32):
        row = found["again -> quantize()", batch]
        assert row.error == ""
        assert 0 < row.p50_ms <= row.p90_ms
        assert row.processes == 2
        assert row.rounds >= 10
        assert row.low <= row.speedup <= row.high
        assert "differ from the verified" in found["lazy", batch].error
        assert "cannot load the file" in found["broken", batch].error
    assert found.environment["threads"] == 1


def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(measure_module.sys, "executable", sleeper(tmp_path))
    with pytest.raises(WorkerFailed, match=r"took more than 1 s and was ended \(loading x\)"):
        launch(tmp_path / "job", tmp_path / "result", 1)


def sleeper(folder: Path) -> str:
    script = folder / "python"
    script.write_text("#!/bin/sh\necho loading x >&2\nexec sleep 60\n")
    script.chmod(0o755)
    return str(script)


def test_a_process_that_fails_says_so(tmp_path):
    with pytest.raises(WorkerFailed, match="the timing process failed: FileNotFoundError"):
        launch(tmp_path / "missing.json", tmp_path / "result.json", 60)


# --- what the figures depend on ---------------------------------------------------------------


def test_the_processor_is_read(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Fast 9\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert cpu_info(path) == ("Fast 9", ("avx2", "avx512_vnni"))
    assert cpu_info(tmp_path / "none")[1] == ()


@pytest.mark.parametrize(
    ("text", "cores"), [("50000 100000", 1), ("max 100000", None), ("rubbish", None)]
)
def test_a_containers_quota_bounds_the_threads(tmp_path, text, cores):
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert cpu_threads(path) == (cores or cpu_threads(tmp_path / "none"))


def test_the_environment_is_json():
    assert json.loads(json.dumps(environment(2)))["threads"] == 2


def test_without_a_gpu_there_is_a_reason(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    import onnxruntime

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert cuda_torch_latency(torch.nn.Linear(2, 2), [torch.zeros(1, 2)]) == (
        None,
        "no CUDA device",
    )
    value, reason = cuda_onnx_latency(tmp_path / "x.onnx", [])
    assert value is None
    assert reason == "onnxruntime here has no CUDA provider"


def test_a_gpu_gives_milliseconds():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    value, reason = cuda_torch_latency(torch.nn.Linear(64, 64), [torch.zeros(1, 64)])
    assert reason == ""
    assert value > 0
