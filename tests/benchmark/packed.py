"""A tiny run whose files are real, and machines that make up how long these take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_fixtures import small_digits
from onnx import TensorProto, helper, numpy_helper
from written import write_onnx

from compress.benchmark.measure import latency
from compress.benchmark.measure.accuracy import logits_of
from compress.benchmark.portable.portable_timer import main
from compress.benchmark.store.outputs import SAMPLES, TIMED, Outputs
from compress.results.derive import read_results
from compress.results.log import RunLog
from compress.results.record import Record
from compress.system.files import sha256
from compress.tasks.base import stacked_inputs
from compress.timing.collect import collect
from compress.timing.interleave import Series
from compress.timing.launch import Launch

SETTINGS = ("cpu", "cpu1", "cpu_batch32")
NAMES = ("baseline [seed 0]", "quantize(target='vnni') [seed 0]", "quantize() [seed 0]")
SECONDS = dict(zip(NAMES, (0.004, 0.001, 0.004), strict=True))
SECRET = "secret-host"


def linear(seed: int) -> bytes:
    """Return a file that multiplies flattened digits by random weights."""
    weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def machine(
    seconds: Mapping[str, float] = SECONDS,
    errors: Mapping[str, str] | None = None,
    rounds: int = 4,
) -> Launch:
    """Return a timing process of a machine without noise: `seconds` per item and candidate.

    Without a name of its own (the controls) a candidate is as fast as the baseline.
    """

    def launch(job_path: Path, result_path: Path, timeout: float) -> None:
        job = json.loads(job_path.read_text())
        settings = {}
        for batch in job["batches"]:
            settings[str(batch)] = {
                name: asdict(
                    Series(
                        (errors or {}).get(name, ""),
                        block_calls=2,
                        medians=[batch * seconds.get(name, seconds[NAMES[0]])] * rounds,
                        calls=[[batch * seconds.get(name, seconds[NAMES[0]])] * 2] * rounds,
                    )
                )
                for name in job["candidates"]
            }
        result_path.write_text(json.dumps({"settings": settings}))

    return launch


def write_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Write a run as `bench` does: three files that are sound, and two rows that are not."""
    outputs = Outputs(folder, (0,), lock=False)
    log = RunLog(
        folder / "results.jsonl",
        {
            "suite": "tiny",
            "command": f"compress-models bench {SECRET}",
            "environment": {"system": SECRET, "versions": {"onnxruntime": "1.32.0"}},
        },
    )
    records = {}
    data = small_digits()
    for number, name in enumerate(NAMES):
        chain, content = name.removesuffix(" [seed 0]"), linear(number)
        path = write_onnx(outputs, chain, 0, content, ok=True)
        figures = {"int8_pair": {"quantize(target='vnni')": 254}.get(chain, 128)} if number else {}
        files = {"onnx": str(path.relative_to(folder))}
        hashes = {"onnx": sha256(content)}
        records[chain, 0] = Record(chain, 0, "ok", figures, hashes=hashes, files=files)
        inputs = stacked_inputs(data.task, data.test, SAMPLES)
        outputs.sidecar(outputs.model(chain, 0).name, {TIMED: logits_of(path, inputs, 1)})
    write_onnx(outputs, "odd()", 0, linear(9), ok=False)
    records["odd()", 0] = Record("odd()", 0, "unverified", hashes={"onnx": sha256(linear(9))})
    records["broken()", 0] = Record("broken()", 0, "failed", error="it did")
    plan: Any = SimpleNamespace(
        data=data,
        threads=1,
        suite=SimpleNamespace(timing_seconds=1.0, timings=SETTINGS),
    )
    collector = partial(collect, launch=machine())
    timed, caught = next(latency.time_records(records, plan, outputs, collector))
    assert not caught
    for record in records.values():
        log.record(record)
    log.timings(timed)
    return folder


EPYC = {
    "threads": 2,
    "cores": 2,
    "cpu": "AMD EPYC 7B13 64-Core Processor",
    "cpu_flags": ["avx2"],
    "onnxruntime": "1.30.0",
    "system": "Linux x86_64",
}
SLUG = "amd_epyc_7b13_2t"


def timings(unpacked: Path, **options: Any) -> dict[str, Any]:
    """Return what the timer writes on a machine like `EPYC`."""
    path = unpacked / "timings.json"
    assert main(["--threads", "2", "--out", str(path)], unpacked, machine(**options)) == 0
    values: dict[str, Any] = json.loads(path.read_bytes())
    values["timings"]["environment"] = dict(EPYC)
    return values


def saved(folder: Path, values: Any, name: str = "timings.json") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def by_chain(results: Any) -> dict[str, dict[str, Any]]:
    return {row["chain"]: row for row in results.rows}


def rows(run: Path) -> dict[str, dict[str, Any]]:
    return by_chain(read_results(run))


# --- what is right ----------------------------------------------------------------------------
