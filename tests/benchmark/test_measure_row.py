"""What a row says of its file: what is executed, what is not counted, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_fixtures import fresh_model, small_digits
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from compress import counts
from compress.benchmark.measure import row as measuring
from compress.benchmark.measure.row import EXECUTED, Measured
from compress.deploy.export import export
from compress.model import Model
from compress.peers.ort_quantize import quantize_onnx
from compress.results.draft import Draft
from compress.results.record import Record
from compress.tasks.base import stacked_inputs

DATA = small_digits()
INPUTS = stacked_inputs(DATA.task, DATA.test, 16)


def executed(path: Path) -> Measured:
    found = Measured()
    measuring._execute(path, [tensor[:1].numpy() for tensor in INPUTS], 1, found)
    return found


def test_the_executed_graph_goes_to_its_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "cpu_info", lambda: ("Old 1", ("avx2",)))
    model = fresh_model(DATA)
    whole = counts.macs(model.module, model.example)
    (tmp_path / "float.onnx").write_bytes(export(model))
    found = executed(tmp_path / "float.onnx")
    assert (found.figures["int8_convs"], found.figures["qdq_nodes"]) == (0, 0)
    assert found.figures["float_convs"] == sum(
        isinstance(layer, nn.Conv2d) for layer in model.module.modules()
    )
    assert (found.figures["int8_macs"], found.figures["executed_macs"]) == (0, whole)
    assert (found.missing, found.notes) == ({}, [])
    (row,) = found.log
    assert (row["kind"], row["macs"]) == ("executed", whole)
    assert row["operators"]["Gemm"] == found.figures["float_matmuls"]

    int8, _ = quantize_onnx((tmp_path / "float.onnx").read_bytes(), [INPUTS])
    (tmp_path / "int8.onnx").write_bytes(int8)
    lowered = executed(tmp_path / "int8.onnx")
    assert lowered.figures["int8_convs"] == found.figures["float_convs"]
    assert lowered.figures["int8_macs"] == lowered.figures["executed_macs"]
    assert [line["cpu_flags"] for line in lowered.log] == [["avx2"]]


def test_a_file_that_does_not_run_has_reasons(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    found = executed(tmp_path / "broken.onnx")
    assert found.figures == {}
    assert found.missing.keys() == {*EXECUTED, "int8_macs_share"}
    assert "INVALID_PROTOBUF" in found.missing["qdq_nodes"]


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = DeformConv2d(1, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        offsets = torch.zeros(len(images), 18, 6, 6)
        return self.layer(images, offsets).relu().mean((2, 3))


def test_what_is_not_counted_is_kept_and_noted() -> None:
    found = Measured()
    model = Model(Deformed(), (torch.zeros(1, 1, 8, 8),))
    counted = measuring.counts.count(model.module, model.example)
    measuring._count(model, counted, b"onnx", 20, found)
    assert found.figures["macs"] == 0
    assert found.log == [
        {
            "kind": "counts",
            "uncounted": {"mean": 1, "relu": 1, "torchvision.deform_conv2d": 1},
            "left_out": {"torchvision.deform_conv2d": 1},
        }
    ]
    assert not found.notes
    record = Record("baseline", 0, "ok", found.figures, log=tuple(found.log))
    assert Draft.of(record).notes == ["MACs leave out 1 call of torchvision.deform_conv2d"]


def test_what_steps_say_of_layers_is_a_table():
    rows = [
        {"kind": "layer", "layer": "conv1", "kept": 8},
        {"kind": "note", "text": "..."},
        {"kind": "step", "step": "prune_channels(macs=0.5)", "seconds": 1},
        {"kind": "layer", "layer": "node_1", "why": "it reads floats, alas", "type": "Conv"},
        {"kind": "step", "step": "quantize()", "seconds": 1},
    ]
    assert measuring._layers(rows).splitlines() == [
        "step,layer,type,kept,why",
        "prune_channels(macs=0.5),conv1,,8,",
        'quantize(),node_1,Conv,,"it reads floats, alas"',
    ]
    assert measuring._layers(rows[1:3]) == ""
