from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import deploy_models
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.deploy.export import read_metadata, stamp
from compress.deploy.session import predict, session
from compress.deploy.verify import verify
from compress.errors import UserError
from compress.model import Model
from compress.peers import ort_quantize
from compress.peers.ort_quantize import Reader, preprocess, quantize_onnx, unfolded_norms

CALIBRATION = [(deploy_models.images(20, seed),) for seed in (1, 2, 3)]


@pytest.fixture(scope="module", params=sorted(deploy_models.BUILDERS))
def lowered(request: pytest.FixtureRequest) -> tuple[Model, bytes, bytes, dict]:
    model = deploy_models.built(request.param)
    content = stamp(deploy_models.float_file(request.param), {"labels": "[]"})
    return (model, content, *quantize_onnx(content, CALIBRATION))


def test_a_lowered_file_is_verified(lowered):
    model, _, content, about = lowered
    result = verify(content, model, (deploy_models.images(256, seed=9),), lowered=True)
    assert result.ok, result.reason
    assert result.top1_agreement > 0.85
    assert about["notes"] == []


def test_names_batch_and_metadata_survive(lowered):
    _, source, content, _ = lowered
    graph = onnx.load_from_string(content).graph
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["logits"]
    for value in (*graph.input, *graph.output):
        assert not value.type.tensor_type.shape.dim[0].HasField("dim_value")
    assert read_metadata(content) == read_metadata(source) == {"labels": "[]"}


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the dequantized int8 weights, and beside each the scale, by float name."""
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and tensors.get(node.input[0]) is not None:
            values, scale = tensors[node.input[0]], tensors[node.input[1]]
            if values.dtype == np.int8:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                shape = [1] * values.ndim
                if scale.ndim:
                    shape[axis] = -1
                scale = scale.reshape(shape) if scale.ndim else scale
                name = node.input[0].removesuffix("_quantized")
                found[name] = (values * scale, scale)
    return found


def test_every_weight_is_within_half_a_step_of_the_float_weight(lowered):
    _, source, content, about = lowered
    prepared, _ = preprocess(source)
    floats = {t.name: numpy_helper.to_array(t) for t in prepared.graph.initializer}
    found = weights_of(onnx.load_from_string(content))
    assert len(found) >= 2
    for name, (values, scale) in found.items():
        assert (np.abs(values - floats[name]) <= scale * 0.5 * (1 + 1e-4)).all(), name
    assert sum(about["quantized_ops"].values()) >= 2
    assert any(np.size(scale) > 1 for _, scale in found.values()), "weights are per channel"


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_histogram_methods_give_ranges_inside_minmax(method):
    model = deploy_models.built("residual")
    content = deploy_models.float_file("residual")
    scales = {}
    for name in ("minmax", method):
        quantized, _ = quantize_onnx(content, CALIBRATION, method=name)
        proto = onnx.load_from_string(quantized)
        result = verify(quantized, model, (deploy_models.images(64, seed=9),), lowered=True)
        assert result.ok, result.reason
        scales[name] = {
            t.name: float(numpy_helper.to_array(t))
            for t in proto.graph.initializer
            if t.name.endswith("_scale") and not t.dims and "bias" not in t.name
        }
    assert scales["minmax"].keys() == scales[method].keys()
    for name, value in scales["minmax"].items():
        assert scales[method][name] <= value * 1.001


def test_the_range_of_the_input_is_that_of_all_calibration_batches():
    quantized, _ = quantize_onnx(deploy_models.float_file("cnn"), CALIBRATION)
    tensors = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(quantized).graph.initializer
    }
    values = np.concatenate([batch[0].numpy() for batch in CALIBRATION])
    assert tensors["input_scale"] == pytest.approx(np.ptp(values) / 255, rel=1e-5)


def test_reduced_range_keeps_weights_to_seven_bits():
    quantized, _ = quantize_onnx(deploy_models.float_file("cnn"), CALIBRATION, reduce_range=True)
    tensors = [numpy_helper.to_array(t) for t in onnx.load_from_string(quantized).graph.initializer]
    assert (
        max(np.abs(t.astype(int)).max() for t in tensors if t.dtype == np.int8 and t.ndim > 1) <= 64
    )


def test_operators_that_stay_float_are_counted_apart(monkeypatch):
    monkeypatch.setattr(ort_quantize, "all_op_types", lambda: ["Conv"])
    _, report = quantize_onnx(deploy_models.float_file("cnn"), CALIBRATION)
    assert report["quantized_ops"]["Conv"] == 2
    assert "Gemm" not in report["quantized_ops"]
    assert report["float_ops"]["Gemm"] == 1


def reader() -> Reader:
    return Reader(CALIBRATION, onnx.load_from_string(deploy_models.float_file("cnn")))


def test_chunks_hold_every_item_once_and_the_widest_comes_first(monkeypatch):
    monkeypatch.setattr(ort_quantize, "CHUNK", 8)
    chunks = [chunk["input"] for chunk in reader().chunks]
    assert sorted(map(len, chunks)) == [4] * 3 + [8] * 6
    widths = [np.abs(chunk).max() for chunk in chunks]
    assert widths == sorted(widths, reverse=True)
    items = {array.tobytes() for chunk in chunks for array in chunk}
    assert items == {image.numpy().tobytes() for (batch,) in CALIBRATION for image in batch}


def test_the_reader_yields_the_requested_range():
    chunks = reader()
    chunks.set_range(1, 2)
    assert chunks.get_next() is not None
    assert chunks.get_next() is None


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_histograms_hold_one_chunk_at_a_time(monkeypatch, method):
    from onnxruntime.quantization.calibrate import HistogramCollector

    held = []
    collect = HistogramCollector.collect

    def spy(self, tensors):
        held.append({(len(arrays), len(arrays[0])) for arrays in tensors.values()})
        return collect(self, tensors)

    monkeypatch.setattr(HistogramCollector, "collect", spy)
    quantize_onnx(deploy_models.float_file("mlp"), CALIBRATION, method=method)
    # Three batches of 20 items in chunks of at most 16.
    assert sorted(map(tuple, held)) == [((1, 4),)] * 3 + [((1, 16),)] * 3


def test_missing_calibration_data_is_refused():
    content = deploy_models.float_file("mlp")
    with pytest.raises(UserError, match="needs calibration data"):
        quantize_onnx(content, [])


def test_an_unfolded_norm_and_a_failed_optimisation_are_reported(monkeypatch):
    node = onnx.helper.make_node
    conv = node("Conv", ["x", "w"], ["h"])
    norm = node("BatchNormalization", ["h", "s", "b", "m", "v"], ["y"])
    graph = onnx.helper.make_graph([conv, norm], "g", [], [])
    assert unfolded_norms(onnx.helper.make_model(graph)) == 1

    import onnxruntime

    content = deploy_models.float_file("cnn")

    def fail(*args, **kwargs):
        raise RuntimeError("no optimiser today")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    _, notes = preprocess(content)
    assert any("Optimization Failed" in note for note in notes)
    assert any("no optimiser today" in note for note in notes)


def test_the_quantizer_is_silent(capfd, caplog):
    quantize_onnx(deploy_models.float_file("mlp"), CALIBRATION, method="percentile")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path):
    (tmp_path / "float.onnx").write_bytes(deploy_models.float_file("residual"))
    code = (
        "import sys, torch, hashlib, pathlib\n"
        "from compress.peers.ort_quantize import quantize_onnx\n"
        "data = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "content, _ = quantize_onnx(pathlib.Path(sys.argv[1]).read_bytes(), [(data,)])\n"
        "print(hashlib.sha256(content).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "float.onnx")],
        env={
            **os.environ,
            "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    inputs = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, _ = quantize_onnx(deploy_models.float_file("residual"), [(inputs,)])
    assert hashlib.sha256(ours).hexdigest() == other.strip()


def test_quantized_and_float_predictions_are_near():
    content = deploy_models.float_file("mlp")
    quantized, _ = quantize_onnx(content, CALIBRATION)
    inputs = [(deploy_models.images(64, seed=5),)]
    before, after = predict(session(content), inputs), predict(session(quantized), inputs)
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
