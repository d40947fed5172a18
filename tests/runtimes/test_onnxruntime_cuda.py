"""Files with bound inputs, in the CPU's provider in the place of the GPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.runtimes import onnxruntime_cuda
from compress.runtimes.onnxruntime_cuda import CUDA, TENSORRT, Provider
from compress.timing.cuda import file_candidate
from compress.timing.interleave import Plan, interleave

HERE = Provider("CPUExecutionProvider", "CPU provider", device="cpu")
ROWS = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", kind, ["batch", 16])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 4])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("batch", [1, 32])
def test_a_file_runs_with_bound_inputs_and_is_checked(linear, batch):
    session = HERE.open(linear)
    made = file_candidate(session, [ROWS], ROWS @ WEIGHTS, batch, 0.02)
    series = interleave({"it": made}, Plan(0, 4, 0), 0)["it"]
    assert (series.error, len(series.medians)) == ("", 4)
    assert made.stopwatch is None
    assert made.call(1).copy_outputs_to_cpu()[0].shape == (batch, 4)


def test_a_file_with_other_outputs_is_caught(linear):
    made = file_candidate(HERE.open(linear), [ROWS], ROWS @ WEIGHTS + 1, 1, 0.02)
    assert "differ from those on the CPU" in made.check(0, made.call(0))


def test_samples_that_do_not_suit_a_file_are_an_error(linear):
    with pytest.raises(ValueError, match="zip"):
        file_candidate(HERE.open(linear), [ROWS] * 2, ROWS @ WEIGHTS, 1, 0.02)


def test_nodes_that_other_providers_run_are_counted(linear):
    session = HERE.open(linear)
    assert session.left_over() == ""
    session.provider = CUDA
    assert session.left_over() == "1 of 1 nodes run in the CPU provider (MatMul)"


def test_a_provider_that_is_not_there_is_a_reason(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert CUDA.absent() == "onnxruntime here has no CUDA provider"
    assert TENSORRT.absent() == "onnxruntime here has no TensorRT provider"
    assert HERE.absent() == ""


def test_a_provider_that_does_not_start_is_an_error(monkeypatch, capsys, linear):
    import onnxruntime

    if CUDA.name in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime here has a CUDA provider")
    plain = onnxruntime.InferenceSession

    def without(path, options, providers, enable_fallback):
        assert enable_fallback == 0
        given.append(providers)
        return plain(path, options, providers=["CPUExecutionProvider"])

    given = []
    calls = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", without)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(calls.append("preload")))
    onnxruntime_cuda._preload.cache_clear()
    with pytest.raises(
        RuntimeError,
        match=r"could not start its CUDA provider: its CUDA and cuDNN libraries are missing, or "
        r"of another version than it was built for$",
    ):
        CUDA.open(linear)
    with pytest.raises(RuntimeError, match="its TensorRT, CUDA and cuDNN libraries"):
        TENSORRT.open(linear)
    cuda = ("CUDAExecutionProvider", {**CUDA.options, "use_tf32": "0"})
    assert given == [[cuda], [("TensorrtExecutionProvider", dict(TENSORRT.options)), cuda]]
    assert calls == ["preload"]
    assert capsys.readouterr().out == ""


def test_an_onnxruntime_that_cannot_preload_is_none_the_worse(monkeypatch, linear):
    import onnxruntime

    if CUDA.name in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime here has a CUDA provider")
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **_: plain(path, options, providers=["CPUExecutionProvider"]),
    )
    onnxruntime_cuda._preload.cache_clear()
    with pytest.raises(RuntimeError, match="could not start its CUDA provider"):
        CUDA.open(linear)
    onnxruntime_cuda._preload.cache_clear()


def test_threads_that_wait_do_not_spin(linear):
    options = HERE.open(linear).session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_what_may_round_to_tf32_is_told(monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert [provider.tf32() for provider in (CUDA, TENSORRT, HERE)] == [False, True, False]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert [provider.tf32() for provider in (CUDA, TENSORRT, HERE)] == [False, False, False]


@pytest.mark.skipif(CUDA.absent() != "", reason="onnxruntime here has no CUDA provider")
def test_a_file_runs_in_the_cuda_provider(linear):
    session = CUDA.open(linear)
    assert session.left_over() == ""
    made = file_candidate(session, [ROWS], ROWS @ WEIGHTS, 1, 0.02)
    assert interleave({"it": made}, Plan(0, 4), 0)["it"].error == ""
