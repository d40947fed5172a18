"""Files that ask for no newer format than they need, and files for older runtimes."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import compress
from compress.deploy.export import read_metadata, stamp
from compress.deploy.session import predict, session
from compress.deploy.versions import oldest_runtime, opset_of, settle, with_opset
from compress.errors import StepFailed, UserError


def one_node(op: str, opset: int, domain: str = "", **attributes: object) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    node = helper.make_node(op, ["x"], ["y"], name="only", domain=domain, **attributes)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    domains = ["", "com.microsoft", "ai.onnx.ml"]
    opsets = [helper.make_opsetid(one, opset if not one else 1) for one in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(("opset", "lowest"), [(17, 8), (18, 8), (19, 9), (20, 9), (21, 10)])
def test_a_file_declares_what_it_uses_and_no_more(opset, lowest):
    """The IR versions are those of ONNX's own table of releases (docs/Versioning.md there)."""
    proto = one_node("Relu", opset)
    settle(proto)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", opset)]
    assert proto.ir_version == lowest


def test_operators_of_others_stay_imported_and_no_version_is_raised():
    proto = one_node("QuickGelu", 18, "com.microsoft")
    proto.ir_version = 7
    settle(proto)
    assert [one.domain for one in proto.opset_import] == ["", "com.microsoft"]
    assert proto.ir_version == 7


@pytest.mark.parametrize(("opset", "oldest"), [(15, "1.15"), (20, "1.17"), (21, "1.18"), (99, "")])
def test_the_oldest_runtime_is_the_one_that_was_tried(opset, oldest):
    assert oldest_runtime(one_node("Relu", opset)) == oldest


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_an_older_opset_gives_the_same_answers(kind):
    content = stamp(deploy_models.float_file(kind), {"labels": "[]"})
    older = with_opset(content, 17)
    proto = onnx.load_from_string(older)
    assert opset_of(proto) == 17
    assert read_metadata(older) == {"labels": "[]"}
    assert with_opset(content, 99) == content
    inputs = [(deploy_models.images(8),)]
    expected, found = (predict(session(one), inputs) for one in (content, older))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_written_as_onnx_defines_it(approximate):
    proto = one_node("Gelu", 20, approximate=approximate)
    older = onnx.load_from_string(with_opset(proto.SerializeToString(), 18))
    assert "Gelu" not in {node.op_type for node in older.graph.node}
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    [expected] = ReferenceEvaluator(proto).run(None, {"x": x})
    [found] = ReferenceEvaluator(older).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_has_no_older_form_is_refused_with_the_reason():
    values = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n"]) for n in "xyz"]
    node = helper.make_node("StringConcat", ["x", "y"], ["z"])
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(StepFailed, match=r"cannot be written with opset 18, its own is 20.*String"):
        with_opset(proto.SerializeToString(), 18)


def test_a_run_writes_the_opset_that_was_asked_for(tmp_path):
    results = compress.run(
        chain="train(epochs=1) -> quantize()",
        model="mlp(width=8)",
        opset=17,
        out=tmp_path,
        timing_seconds=1,
        progress=False,
    )
    assert results.ok
    files = list((tmp_path / "models").glob("*/model.onnx"))
    assert len(files) == 2
    for file in files:
        proto = onnx.load(file)
        assert (opset_of(proto), proto.ir_version) == (17, 8)
        assert read_metadata(proto)["onnxruntime"] == ">=1.15"


def test_an_opset_without_int8_per_channel_is_refused(tmp_path):
    with pytest.raises(UserError, match="opset must be at least 13, not 12"):
        compress.run(chain="train()", opset=12, out=tmp_path)
