"""What onnxruntime executes, held against the module's own count; and the sentence about it."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torchvision.models import VisionTransformer  # noqa: E402

from compress import counts  # noqa: E402
from compress.deploy.export import export  # noqa: E402
from compress.model import Model  # noqa: E402
from compress.peers.ort_quantize import quantize_onnx  # noqa: E402
from compress.timing.executed import Executed, executed, explain  # noqa: E402

EXAMPLE = (torch.zeros(1, 3, 16, 16),)
SAMPLES = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
ONE = [SAMPLES[:1]]


def cnn():
    """Convolutions with 10 and 20 channels, which the blocked layout pads to 16 and 32."""
    return nn.Sequential(
        *(nn.Conv2d(3, 10, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(10, 10, 3, groups=10), nn.ReLU()),
        *(nn.Conv2d(10, 20, 3, groups=2), nn.ReLU()),
        *(nn.Conv2d(20, 20, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)),
    )


def transformer():
    return VisionTransformer(16, 4, 2, 2, 32, 64, num_classes=10)


@functools.cache
def files(maker):
    """Return the module, its float file and its int8 file."""
    torch.manual_seed(0)
    module = maker().eval()
    onnx = export(Model(module, EXAMPLE))
    return module, onnx, quantize_onnx(onnx, [(torch.from_numpy(SAMPLES),)])[0]


def test_a_float_file_runs_the_macs_of_its_module():
    module, onnx, _ = files(cnn)
    run = executed(onnx, ONE)
    assert run.macs == counts.macs(module, EXAMPLE)
    assert (run.int8_convs, run.float_convs) == (0, 4)
    assert (run.int8_matmuls, run.float_matmuls) == (0, 1)
    assert (run.qdq_nodes, run.int8_macs, run.int8_macs_share) == (0, 0, 0)


def test_macs_are_of_the_batch_that_was_run():
    _, onnx, _ = files(cnn)
    assert executed(onnx, [SAMPLES[:4]]).macs == 4 * executed(onnx, ONE).macs


def test_an_int8_file_runs_the_same_macs_in_int8():
    module, _, int8 = files(cnn)
    run = executed(int8, ONE)
    assert run.int8_macs == run.macs == counts.macs(module, EXAMPLE)
    assert run.int8_macs_share == 1
    assert (run.int8_convs, run.float_convs) == (4, 0)
    assert (run.int8_matmuls, run.float_matmuls) == (1, 0)
    assert run.qdq_nodes == run.operators["QuantizeLinear"] + run.operators["DequantizeLinear"]
    assert run.qdq_nodes >= 2


def test_what_stays_float_is_told_apart(monkeypatch):
    module, onnx, _ = files(cnn)
    monkeypatch.setattr("compress.peers.ort_quantize.all_op_types", lambda: ["Conv"])
    only = quantize_onnx(onnx, [(torch.from_numpy(SAMPLES),)])[0]
    run = executed(only, ONE)
    linear = 20 * 10
    assert (run.int8_convs, run.float_matmuls) == (4, 1)
    assert run.int8_macs_share == 1 - linear / counts.macs(module, EXAMPLE)


def test_a_transformer_with_attention():
    module, onnx, int8 = files(transformer)
    # Per block: q, k and v in one, scores, weighted values, projection, and two of the MLP.
    for content in (onnx, int8):
        run = executed(content, ONE)
        assert run.macs == counts.macs(module, EXAMPLE)
        assert run.int8_convs + run.float_convs == 1
        assert run.int8_matmuls + run.float_matmuls == 2 * 6 + 1


def test_a_path_serves_as_well_and_nothing_is_left_behind(tmp_path, monkeypatch, capfd):
    _, onnx, int8 = files(cnn)
    (tmp_path / "model.onnx").write_bytes(int8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert executed(tmp_path / "model.onnx", ONE, threads=1) == executed(int8, ONE)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        executed(onnx, [SAMPLES[:1, :2]])
    with pytest.raises(Exception, match="INVALID_PROTOBUF"):
        executed(b"rubbish", ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")


INT8 = Executed(20, 0, 1, 0, 4, 1000, 1000)


def test_nothing_is_said_of_float_files_and_of_whole_int8_files():
    assert explain(Executed(0, 20, 0, 1, 0, 0, 1000), ["avx2"]) == ""
    assert explain(INT8, ["avx2", "avx512_vnni"]) == ""
    assert explain(INT8, []) == ""  # no flag can be read: nothing is known of this CPU


def test_an_int8_file_is_explained():
    half = replace(INT8, float_convs=7, qdq_nodes=12, int8_macs=600)
    assert explain(half, ["avx2"]) == (
        "what slows int8: 40% of the MACs still run in float, "
        "12 quantize/dequantize nodes are left, "
        "this CPU has no int8 dot products (VNNI, AMX or Arm's)"
    )
    assert explain(INT8, ["avx2"]) == (
        "what slows int8: this CPU has no int8 dot products (VNNI, AMX or Arm's)"
    )
    unfused = Executed(0, 20, 0, 1, 60, 0, 1000)
    assert explain(unfused, ["i8mm"]) == (
        "what slows int8: 100% of the MACs still run in float, "
        "60 quantize/dequantize nodes are left"
    )
