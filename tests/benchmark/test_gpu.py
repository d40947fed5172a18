"""The GPU stage on a made-up device: every column has a figure or a reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from fake_cuda import Caching, Costly, Fake, Otherwise
from gpu_rows import derived
from torch import nn
from written import write_onnx

from compress.benchmark import run as bench_module
from compress.benchmark.execute.executor import ChainJob, GpuJob, Outcome
from compress.benchmark.execute.job import perform, record_of
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.measure import gpu
from compress.benchmark.measure.gpu import (
    FORMS,
    FOUND,
    PROVIDERS,
    RECORDS,
    gpu_stage,
    module_of,
    time_on_gpu,
)
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.rows import Row
from compress.benchmark.plan.suite import Suite
from compress.benchmark.store.outputs import Outputs
from compress.benchmark.store.store import Store
from compress.compressor import run
from compress.deploy.export import export
from compress.model import Model
from compress.results.draft import Draft
from compress.results.gpu import LOWERED as IS_LOWERED
from compress.results.gpu import WORDS, GpuFacts
from compress.results.log import Stage
from compress.results.record import Key, Record
from compress.results.timed import Timed
from compress.runtimes.onnxruntime_cuda import Provider
from compress.system.cuda import Cuda
from compress.techniques import chain
from compress.timing import cuda as timing_cuda
from compress.timing import interleave
from compress.timing.interleave import Plan

HERE = Provider("CPUExecutionProvider", "CPU provider", device="cpu")
CHAINS = ("baseline", "prune_channels(channels=0.5)", "quantize(calibration=64)")
BASE, PRUNED, LOWERED = ((text, 0) for text in CHAINS)
TORCH_ABSENT = "torch finds no CUDA device"


@pytest.fixture(scope="module")
def models() -> dict[Key, Model]:
    data = small_digits()
    base = run(chain("train(epochs=2)"), fresh_model(data), make_context(data))
    bench = make_context(data, teacher=base)
    return {BASE: base} | {key: run(chain(key[0]), base, bench) for key in (PRUNED, LOWERED)}


@pytest.fixture(scope="module")
def contents(models: dict[Key, Model]) -> dict[Key, bytes]:
    return {key: model.onnx or export(model) for key, model in models.items()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_cuda, "PILOT", Plan(0, 2, 0.0, warm_calls=1))
    monkeypatch.setattr(gpu, "PLAN", Plan(0, min_rounds=4, block_seconds=0.0, warm_calls=1))
    monkeypatch.setattr(gpu, "REPETITIONS", 3)
    monkeypatch.setattr(interleave, "RETURN_CALLS", 1)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    made = Outputs(tmp_path, (0,))
    with made.lock:
        yield made


@pytest.fixture
def records(contents: dict[Key, bytes], outputs: Outputs) -> dict[Key, Record]:
    made = {}
    for key, content in contents.items():
        path = write_onnx(outputs, *key, content, ok=True)
        files = {"onnx": str(path.relative_to(outputs.folder))}
        steps = () if key == BASE else Row(key[0], chain(key[0])).steps
        made[key] = Record(*key, "ok", {"params": 9}, steps=steps, files=files)
    made["factorize(rank=0.1)", 0] = Record("factorize(rank=0.1)", 0, "failed", error="it did")
    return made


def plan() -> Any:
    rows = [Row("baseline", None), *(Row(text, chain(text)) for text in CHAINS[1:])]
    suite = SimpleNamespace(timing_seconds=0.0)
    return SimpleNamespace(data=small_digits(), threads=1, rows=rows, suite=suite)


def timed(
    records: dict[Key, Record],
    outputs: Outputs,
    modules: dict[Key, nn.Module],
    device: Cuda | None = None,
) -> tuple[dict[Key, Draft], dict[str, Timed], dict[str, Any]]:
    stage = time_on_gpu(records, plan(), outputs, modules, device or Fake())
    return derived(records, stage, outputs.folder)


def costly(models: dict[Key, Model]) -> dict[Key, nn.Module]:
    costs = {BASE: 1e-3, PRUNED: 5e-4}
    return {key: Costly(models[key].module, cost, last=0.5) for key, cost in costs.items()}


def test_every_column_has_a_figure(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
) -> None:
    for column in PROVIDERS:
        monkeypatch.setitem(PROVIDERS, column, HERE)
    found, columns, about = timed(records, outputs, costly(models))
    base, pruned = found[BASE].figures, found[PRUNED].figures
    assert found.keys() == {BASE, PRUNED, LOWERED}, "what failed is left out"
    # Half as long in channels_last, half as long in another number type: exactly.
    assert base["cuda_torch_ms_p50"] == pytest.approx(0.5)
    assert base["cuda_torch_float16_ms_p50"] == pytest.approx(0.25)
    assert base["cuda_torch_bfloat16_ms_p50"] == pytest.approx(0.25)
    assert base["cuda_graph_ms_p50"] == pytest.approx(0.5)
    assert base["cuda_batch32_per_s"] == pytest.approx(64000)
    assert base["cuda_peak_bytes"] == 4000
    assert base["cuda_speedup"] == 1
    assert "cuda_verdict" not in base
    assert pruned["cuda_speedup"] == pytest.approx(2)
    assert pruned["cuda_speedup_low"] <= 2.0001
    assert pruned["cuda_speedup_high"] >= 1.9999
    assert pruned["cuda_verdict"] == "faster"
    assert pruned["cuda_ms_p50"] > 0
    assert "float32 in channels_last; float16 in channels_last" in pruned["cuda_note"]
    assert pruned["params"] == 9
    assert about["gpu"]["device"] == {"name": "made up"}
    control = columns["cuda_torch_ms_p50"].known
    assert control["control"] == pytest.approx(1)
    assert control["processes"] == 3
    # Raw seconds are saved.
    facts = GpuFacts.from_json(json.loads((outputs.folder / "raw" / "cuda.json").read_text()))
    series = facts.raw_timings["cuda_torch_ms_p50"].series("cpu", "baseline [seed 0]")
    np.testing.assert_allclose([one["medians"] for one in series if one], [[5e-4] * 4] * 3)


def test_a_lowered_row_has_no_module_and_says_so(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    found, _, _ = timed(records, outputs, costly(models))
    assert found[LOWERED].missing["cuda_torch_ms_p50"] == IS_LOWERED
    assert found[LOWERED].missing["cuda_speedup"] == IS_LOWERED
    assert found[BASE].missing["cuda_ms_p50"] == "onnxruntime here has no CUDA provider"
    assert found[LOWERED].row()["cuda_note"] == (
        "no float32, float16, bfloat16, CUDA graph, batch 32, peak memory, speed-up: the file is "
        "int8 or float16, and torch has only the float32 module; onnxruntime here has no CUDA "
        "provider; onnxruntime here has no TensorRT provider"
    )


def test_without_a_gpu_there_are_reasons_and_no_work(
    monkeypatch: pytest.MonkeyPatch, records: dict[Key, Record], outputs: Outputs
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Provider, "absent", lambda self: f"onnxruntime has no {self.title}")
    monkeypatch.setattr(gpu, "stacked_inputs", None)
    found, columns, about = timed(records, outputs, {}, Cuda())
    assert (columns, about) == ({}, {})
    assert found[BASE].missing["cuda_graph_ms_p50"] == TORCH_ABSENT
    assert found[BASE].row()["cuda_note"] == (
        f"{TORCH_ABSENT}; onnxruntime has no CUDA provider; onnxruntime has no TensorRT provider"
    )


def test_files_are_timed_where_only_onnxruntime_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, records: dict[Key, Record], outputs: Outputs
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(PROVIDERS, "cuda_ms_p50", HERE)
    found, columns, about = timed(records, outputs, {}, Cuda())
    assert {key for key, record in found.items() if record.figures["cuda_ms_p50"] > 0} == {
        BASE,
        PRUNED,
        LOWERED,
    }
    assert found[BASE].missing["cuda_torch_ms_p50"] == TORCH_ABSENT
    assert list(columns) == ["cuda_ms_p50"]
    assert about == {}


def test_a_module_that_caches_its_outputs_gets_no_figure(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    lazy = Caching(copy.deepcopy(models[PRUNED].module))
    found, _, _ = timed(records, outputs, costly(models) | {PRUNED: lazy})
    for column in FORMS:
        assert "differ from those on the CPU" in found[PRUNED].missing[column]
        assert column in found[BASE].figures
    assert "differ from those on the CPU" in found[PRUNED].missing["cuda_speedup"]
    assert found[PRUNED].record.status == "ok", "its file was verified"


def test_what_a_device_lacks_is_a_reason(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    class Old(Fake):
        def lacks(self, dtype: str) -> str:
            return "this GPU does not compute in bfloat16" if dtype == "bfloat16" else ""

    found, _, _ = timed(records, outputs, costly(models), Old())
    assert found[BASE].missing["cuda_torch_bfloat16_ms_p50"] == (
        "this GPU does not compute in bfloat16"
    )
    assert "cuda_torch_float16_ms_p50" in found[BASE].figures


def test_a_failed_capture_is_a_reason_in_its_column_alone(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    class NoGraphs(Fake):
        def _record(self, run: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nadvice")

    found, _, _ = timed(records, outputs, costly(models), NoGraphs())
    error = "operation not permitted when stream is capturing"
    reasons = {
        BASE: f"RuntimeError: {error}",
        PRUNED: f"RuntimeError: no graph is tried after one that could not be captured: {error}",
    }
    for key, reason in reasons.items():
        assert found[key].missing["cuda_graph_ms_p50"] == reason
        assert f"no CUDA graph: {reason}" in found[key].figures["cuda_note"]
        assert FORMS.keys() - found[key].figures.keys() == {"cuda_graph_ms_p50"}


def test_a_graph_has_the_memory_format_in_which_it_is_faster(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    found, _, _ = timed(records, outputs, costly(models), Otherwise())
    base = found[BASE].figures
    # Eager, channels_last takes 0.5 ms instead of 1 ms; as a graph, 1 ms instead of 0.5 ms.
    assert base["cuda_torch_ms_p50"] == pytest.approx(0.5)
    assert base["cuda_graph_ms_p50"] == pytest.approx(0.5)
    assert "float32 in channels_last" in base["cuda_note"]
    assert "CUDA graph in channels_last" not in base["cuda_note"]


def test_every_file_has_a_speedup_of_its_own(
    monkeypatch: pytest.MonkeyPatch, records: dict[Key, Record], outputs: Outputs
) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda_ms_p50", HERE)
    rows, _, _ = timed(records, outputs, {})
    assert rows[BASE].figures["cuda_file_speedup"] == 1
    for key in (PRUNED, LOWERED):
        figures = rows[key].figures
        low, high = figures["cuda_file_speedup_low"], figures["cuda_file_speedup_high"]
        assert low <= figures["cuda_file_speedup"] <= high
        assert rows[key].missing["cuda_speedup"] == "the baseline's module is missing"


def test_tf32_is_told_for_every_column_in_float32(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda_trt_ms_p50", HERE)
    monkeypatch.setattr(Provider, "tf32", lambda self: self is HERE)
    found, _columns, about = timed(records, outputs, costly(models))
    assert about["gpu"]["tf32"] == {
        "cuda_torch_ms_p50": False,
        "cuda_graph_ms_p50": False,
        "cuda_batch32_per_s": False,
        "cuda_trt_ms_p50": True,
    }
    for key in (BASE, PRUNED, LOWERED):
        note = found[key].figures["cuda_note"]
        assert "CPU provider with TF32 (NVIDIA_TF32_OVERRIDE=0 forbids it)" in note


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("CUDA driver error: too old\nadvice")


@pytest.mark.parametrize("where", ["settled", "about", "prepare", "lacks"])
def test_an_error_of_the_stage_as_a_whole_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
    where: str,
) -> None:
    device = Fake()
    if where == "prepare":
        monkeypatch.setattr(gpu, "logits_of", fails)
    else:
        monkeypatch.setattr(device, where, fails)
    monkeypatch.setattr(Provider, "absent", lambda self: "")
    found, columns, _about = timed(records, outputs, costly(models), device)
    assert columns == {}
    told = "what the GPU can do is unknown" if where == "lacks" else "the timing on the GPU was"
    for key in (BASE, PRUNED, LOWERED):
        assert found[key].record.status == "ok"
        assert found[key].figures["params"] == 9
        [reason] = {found[key].missing[column] for column in WORDS}
        assert reason.startswith(told)
        assert reason.endswith("CUDA driver error: too old")
        assert found[key].figures["cuda_note"] == reason


def test_what_was_timed_before_the_stage_was_given_up_stays(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
) -> None:
    class Late(Fake):
        def failure(self) -> str:
            return fails() if self.captures else ""

    monkeypatch.setitem(PROVIDERS, "cuda_ms_p50", HERE)
    found, columns, _about = timed(records, outputs, costly(models), Late())
    assert found[PRUNED].figures["cuda_speedup"] == pytest.approx(2)
    assert found[PRUNED].missing["cuda_graph_ms_p50"] == "CUDA driver error: too old"
    reason = "the timing on the GPU was given up: CUDA driver error: too old"
    for column in ("cuda_ms_p50", "cuda_file_speedup"):
        assert found[LOWERED].missing[column] == reason
    assert "cuda_torch_ms_p50" in columns


def test_raw_seconds_that_cannot_be_written_are_noted(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(outputs.folder))

    monkeypatch.setattr(gpu, "write_values", full)
    found, _, _ = timed(records, outputs, costly(models))
    told = "the raw seconds of the GPU could not be saved: No space left on device"
    assert found[PRUNED].figures["cuda_note"] == told


def test_what_breaks_the_device_ends_the_stage_and_what_was_found_stays(
    monkeypatch: pytest.MonkeyPatch,
    models: dict[Key, Model],
    records: dict[Key, Record],
    outputs: Outputs,
) -> None:
    class Fragile(Fake):
        def _record(self, run: Any) -> Any:
            self.breaks_after = 0
            raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setitem(PROVIDERS, "cuda_ms_p50", HERE)
    found, _, _ = timed(records, outputs, costly(models), Fragile())
    assert "cuda_torch_bfloat16_ms_p50" in found[BASE].figures
    assert "cuda_batch32_per_s" in found[BASE].figures
    assert found[PRUNED].missing["cuda_ms_p50"] == (
        "the GPU broke before this was timed: CUDA error: an illegal memory access"
    )


def test_without_a_sound_baseline_there_is_a_reason(
    records: dict[Key, Record], outputs: Outputs
) -> None:
    found, _, _ = timed({PRUNED: records[PRUNED]}, outputs, {})
    assert found[PRUNED].missing["cuda_torch_ms_p50"] == "there is no sound baseline file"


def test_without_sound_rows_there_is_nothing(outputs: Outputs) -> None:
    assert timed({}, outputs, {}) == ({}, {}, {})


def test_the_stage_finds_its_modules_in_the_store(tmp_path: Path, outputs: Outputs) -> None:
    """As a job: records in, records out, as files; float modules are rebuilt, lowered ones not."""
    suite = Suite("x", "digits", "mlp(width=8)", ("train(epochs=1)", *CHAINS[1:]), controls=False)
    whole = make_plan(suite, data=small_digits())
    graph = make_graph(whole)
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    for chain_run in graph.chain_runs:
        job = ChainJob(*chain_run.key, len(chain_run.nodes) - 1)
        assert perform(job, whole, stores).error == ""
    found = {
        chain_run.row.text: module_of(chain_run, graph, whole, stores.get) is not None
        for chain_run in graph.chain_runs
    }
    assert found == dict(zip(CHAINS, (True, True, False), strict=True))
    kept = [stores.get(chain_run.measured) for chain_run in graph.chain_runs]
    records = [outputs.publish(entry.folder, record_of(entry)) for entry in kept if entry]
    asked = {"out": str(outputs.folder), "records": [asdict(record) for record in records]}
    (tmp_path / RECORDS).write_text(json.dumps(asked))
    gpu_stage(whole, graph, stores.get, tmp_path)
    stage = Stage.from_json(json.loads((tmp_path / FOUND).read_text()))
    found, _, _ = derived({r.key: r for r in records}, stage, outputs.folder)
    assert [key[0] for key in found] == list(CHAINS)


def test_a_stage_that_dies_is_every_rows_reason(
    tmp_path: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies:
        def run_gpu_stage(self, job: GpuJob) -> Outcome:
            return Outcome("StepEnded: it took more than 120 s and was ended")

    monkeypatch.setattr(bench_module, "Cuda", lambda: SimpleNamespace(absent=lambda: ""))
    records = {key: Record(*key, "failed" if key == LOWERED else "ok") for key in (BASE, LOWERED)}
    stage = bench_module.time_on_gpu(records, plan(), outputs, Dies(), tmp_path)  # type: ignore[arg-type]
    found, columns, _ = derived(records, stage, outputs.folder)
    reason = "the timing on the GPU ended early: StepEnded: it took more than 120 s and was ended"
    assert {key: draft.row()["cuda_note"] for key, draft in found.items()} == {BASE: reason}
    assert columns == {}
