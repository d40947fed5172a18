"""The GPU stage on a made-up device: every column has a figure or a reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from fake_cuda import Caching, Costly, Fake
from torch import nn

from compress.compressor import run
from compress.deploy.export import export
from compress.harness import gpu
from compress.harness.gpu import gpu_records, keep_module
from compress.harness.gpu_row import FORMS, PROVIDERS, WORDS, Found
from compress.harness.outputs import Outputs
from compress.harness.record import Key, Record
from compress.harness.rows import Row
from compress.model import Model
from compress.techniques import chain
from compress.timing.cuda import modules as cuda_modules
from compress.timing.cuda.device import Cuda
from compress.timing.cuda.files import Provider
from compress.timing.cuda.turns import Effort
from compress.timing.rounds import Plan

HERE = Provider("CPUExecutionProvider", "CPU provider", device="cpu")
CHAINS = ("baseline", "prune_channels(channels=0.5)", "quantize(calibration=64)")
BASE, PRUNED, LOWERED = ((text, 0) for text in CHAINS)
TORCH_ABSENT = "torch finds no CUDA device"


@pytest.fixture(scope="module")
def models() -> dict[Key, Model]:
    data = small_digits()
    base = run(chain("train(epochs=2)"), fresh_model(data), make_bench(data))
    bench = make_bench(data, teacher=base)
    return {BASE: base} | {key: run(chain(key[0]), base, bench) for key in (PRUNED, LOWERED)}


@pytest.fixture(scope="module")
def contents(models: dict[Key, Model]) -> dict[Key, bytes]:
    return {key: model.onnx or export(model) for key, model in models.items()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_modules, "PILOT", Plan(0, 2, 0.0, warm_calls=1))
    effort = Effort(seconds=0, repetitions=3, min_rounds=4, block_seconds=0.0)
    monkeypatch.setattr(gpu, "Effort", lambda seconds: effort)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    made = Outputs(tmp_path, (0,))
    yield made
    made.lock.close()


@pytest.fixture
def records(contents: dict[Key, bytes], outputs: Outputs) -> dict[Key, Record]:
    made = {}
    for key, content in contents.items():
        path = outputs.write_onnx(*key, content, ok=True)
        figures = {"onnx_path": str(path.relative_to(outputs.folder)), "accuracy": 0.9}
        made[key] = Record(*key, "ok", figures)
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
) -> tuple[dict[Key, Record], dict[str, Any]]:
    found, about = gpu_records(records, plan(), outputs, modules, False, device or Fake())
    for record in found:
        for column in WORDS:
            told = (column in record.measured, column in record.missing)
            assert sorted(told) == [False, True], f"{column}: {told}"
    return {(record.chain, record.seed): record for record in found}, about


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
    found, about = timed(records, outputs, costly(models))
    base, pruned = found[BASE].measured, found[PRUNED].measured
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
    assert pruned["accuracy"] == 0.9
    assert about["cuda"]["device"] == {"name": "made up"}
    control = about["cuda"]["controls"]["cuda_torch_ms_p50"]
    assert control["control"] == pytest.approx(1)
    assert control["repetitions"] == 3


def test_raw_seconds_are_kept(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    timed(records, outputs, costly(models))
    raw = outputs.stored("cuda")
    seconds = raw["cuda_torch_ms_p50/rounds/2/baseline [seed 0]"]
    np.testing.assert_allclose(seconds, [5e-4] * 4)


def test_a_lowered_row_has_no_module_and_says_so(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    found, _ = timed(records, outputs, costly(models))
    assert found[LOWERED].missing["cuda_torch_ms_p50"].startswith("the deployed file is lowered")
    assert found[LOWERED].missing["cuda_speedup"].startswith("the deployed file is lowered")
    assert found[BASE].missing["cuda_ms_p50"] == "onnxruntime here has no CUDA provider"
    assert found[LOWERED].row()["cuda_note"] == (
        "no float32, float16, bfloat16, CUDA graph, batch 32, peak memory, speed-up: the deployed "
        "file is lowered, and torch has only the float module it was made from; onnxruntime here "
        "has no CUDA provider; onnxruntime here has no TensorRT provider"
    )


def test_without_a_gpu_there_are_reasons_and_no_work(
    monkeypatch: pytest.MonkeyPatch, records: dict[Key, Record], outputs: Outputs
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "absent", lambda provider: f"onnxruntime has no {provider.words}")
    monkeypatch.setattr(gpu, "stacked_inputs", None)
    found, about = timed(records, outputs, {}, Cuda())
    assert about == {}
    assert found[BASE].missing["cuda_graph_ms_p50"] == TORCH_ABSENT
    assert found[BASE].row()["cuda_note"] == (
        f"{TORCH_ABSENT}; onnxruntime has no CUDA provider; onnxruntime has no TensorRT provider"
    )
    assert not (outputs.folder / "raw").exists()


def test_files_are_timed_where_only_onnxruntime_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, records: dict[Key, Record], outputs: Outputs
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(PROVIDERS, "cuda_ms_p50", HERE)
    found, about = timed(records, outputs, {}, Cuda())
    assert {key for key, record in found.items() if record.measured["cuda_ms_p50"] > 0} == {
        BASE,
        PRUNED,
        LOWERED,
    }
    assert found[BASE].missing["cuda_torch_ms_p50"] == TORCH_ABSENT
    assert about["cuda"]["device"] == {}


def test_a_module_that_caches_its_outputs_gets_no_figure(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    lazy = Caching(copy.deepcopy(models[PRUNED].module))
    found, _ = timed(records, outputs, costly(models) | {PRUNED: lazy})
    for column in FORMS:
        assert "differ from those on the CPU" in found[PRUNED].missing[column]
        assert column in found[BASE].measured
    assert "differ from those on the CPU" in found[PRUNED].missing["cuda_speedup"]
    assert found[PRUNED].status == "ok", "its file was verified"


def test_what_a_device_lacks_is_a_reason(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    class Old(Fake):
        def lacks(self, dtype: str) -> str:
            return "this GPU does not compute in bfloat16" if dtype == "bfloat16" else ""

    found, _ = timed(records, outputs, costly(models), Old())
    assert found[BASE].missing["cuda_torch_bfloat16_ms_p50"] == (
        "this GPU does not compute in bfloat16"
    )
    assert "cuda_torch_float16_ms_p50" in found[BASE].measured


def test_a_failed_capture_is_a_reason_in_its_column_alone(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    class NoGraphs(Fake):
        def capture(self, run: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nadvice")

    found, _ = timed(records, outputs, costly(models), NoGraphs())
    for key in (BASE, PRUNED):
        assert found[key].missing["cuda_graph_ms_p50"] == (
            "RuntimeError: operation not permitted when stream is capturing"
        )
        assert "cuda_torch_ms_p50" in found[key].measured
        assert "no CUDA graph: RuntimeError: operation" in found[key].measured["cuda_note"]


def test_what_breaks_the_device_ends_the_stage_and_what_was_found_stays(
    models: dict[Key, Model], records: dict[Key, Record], outputs: Outputs
) -> None:
    class Fragile(Fake):
        def capture(self, run: Any) -> Any:
            self.breaks_after = 0
            raise RuntimeError("CUDA error: an illegal memory access")

    found, _ = timed(records, outputs, costly(models), Fragile())
    assert "cuda_torch_bfloat16_ms_p50" in found[BASE].measured
    assert found[PRUNED].missing["cuda_batch32_per_s"] == (
        "the GPU broke before this was timed: CUDA error: an illegal memory access"
    )


def test_without_a_sound_baseline_there_is_a_reason(
    records: dict[Key, Record], outputs: Outputs
) -> None:
    found, _ = timed({PRUNED: records[PRUNED]}, outputs, {})
    assert found[PRUNED].missing["cuda_torch_ms_p50"] == "there is no sound baseline file"


def test_without_sound_rows_there_is_nothing(outputs: Outputs) -> None:
    assert gpu_records({}, plan(), outputs, {}, False, Fake()) == ([], {})


def test_modules_are_kept_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, models: dict[Key, Model]
) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        kept: dict[Key, nn.Module] = {}
        for key, model in models.items():
            keep_module(kept, key, model)
        assert kept.keys() == ({BASE, PRUNED} if there else set())


def test_noise_is_noted() -> None:
    record = Found(dict.fromkeys(WORDS, 1.0), noisy=True).onto(Record("a()", 0, "ok"), {}, False)
    assert "noisy latency on the GPU" in record.row()["note"]
    assert record.row()["cuda_note"] == ""
