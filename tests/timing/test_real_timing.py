"""The real timing process: smoke tests, which assert nothing about how long anything took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.raw_timings import CONTROL
from compress.timing.summary import summarise

SAMPLES = [np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)]


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
    effort = Effort(seconds=0.5, processes=2)
    request = TimingRequest(candidates, SAMPLES, expected, "base", threads=1, effort=effort)
    found = summarise(collect(request))
    assert found.failures == ()
    for setting in ("cpu", "cpu1", "cpu_batch32"):
        row = found["again -> quantize()", setting]
        assert row.error == ""
        assert 0 < row.p50_ms <= row.p90_ms
        assert row.processes >= 2
        assert row.rounds >= 6
        assert row.low <= row.speedup <= row.high
        assert "differ from the verified" in found["lazy", setting].error
        assert "cannot load the file" in found["broken", setting].error
        assert found.controls[setting].ratio is not None
        (series, *_) = found.raw_timings.series(setting, CONTROL)
        assert min(series["medians"]) > 0
    assert found.raw_timings.environment["threads"] == 1
