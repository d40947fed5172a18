from __future__ import annotations

from pathlib import Path

import deploy_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.deploy import half
from compress.deploy.export import read_metadata, stamp
from compress.deploy.half import LARGEST, largest_activation, to_float16
from compress.deploy.session import predict, session
from compress.deploy.verify import verify
from compress.errors import StepFailed

ITEMS = [(deploy_models.images(16, seed),) for seed in (1, 2)]


def chain_of(*steps: tuple[str, np.ndarray], shape: tuple[int, ...] = (4,)) -> bytes:
    """Return a file whose input goes through binary operators with a constant each."""
    nodes, last = [], "input"
    for number, (operator, _) in enumerate(steps):
        output = "logits" if number == len(steps) - 1 else f"value_{number}"
        nodes.append(helper.make_node(operator, [last, f"w{number}"], [output], f"n{number}"))
        last = output
    weights = [
        numpy_helper.from_array(value.astype(np.float32), f"w{number}")
        for number, (_, value) in enumerate(steps)
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", kind, ["batch", *shape])],
        weights,
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def given(values: np.ndarray) -> list[tuple]:
    import torch

    return [(torch.from_numpy(values.astype(np.float32)),)]


@pytest.fixture(scope="module", params=sorted(deploy_models.BUILDERS))
def converted(request: pytest.FixtureRequest) -> tuple[str, bytes, bytes, dict]:
    content = stamp(deploy_models.float_file(request.param), {"labels": "[]"})
    return (request.param, content, *to_float16(content, ITEMS))


def test_the_file_is_verified_and_close_to_the_float_one(converted):
    name, _, content, about = converted
    inputs = (deploy_models.images(256, seed=9),)
    verdict = verify(content, deploy_models.built(name), inputs, lowered=True)
    assert verdict.ok, verdict.reason
    # Float16 has 11 bits: each of a dozen layers rounds by at most 2**-11.
    assert verdict.max_abs_error < 12 * 2**-11 * verdict.largest_logit
    assert about["notes"] == []


def test_every_weight_is_float16_and_the_interface_is_float32(converted):
    _, before, content, _ = converted
    graph = onnx.load_from_string(content).graph
    assert {t.data_type for t in graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [v.name for v in graph.input] == ["input"]
    assert [v.name for v in graph.output] == ["logits"]
    assert len(content) < 0.8 * len(before)


def test_metadata_stays(converted):
    _, before, content, _ = converted
    assert read_metadata(content) == read_metadata(before)
    assert read_metadata(content)["labels"] == "[]"


def test_weights_are_the_rounded_ones(converted):
    _, before, content, _ = converted
    old = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(before).graph.initializer
    }
    for tensor in onnx.load_from_string(content).graph.initializer:
        if tensor.name in old and old[tensor.name].dtype == np.float32:
            rounded = old[tensor.name].astype(np.float16)
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), rounded)


def test_a_weight_out_of_range_is_refused_by_name():
    content = chain_of(("Mul", np.array([1, 2, 3, 7e4])))
    with pytest.raises(
        StepFailed, match=r"float16 ends at 65504, and the weight w0 has a value of 70000"
    ):
        to_float16(content, given(np.ones((4, 4))))


def test_a_value_inside_out_of_range_is_refused_by_name():
    # The outputs are harmless: on the CPU, where casts are fused away, nothing would show.
    content = chain_of(("Mul", np.full(4, 300.0)), ("Mul", np.full(4, 1 / 300)))
    to_float16(content, given(np.full((4, 4), 100.0)))
    with pytest.raises(StepFailed, match=r"value_0 inside the network reaches 75000"):
        to_float16(content, given(np.full((4, 4), 250.0)))


def test_little_room_is_noted():
    content = chain_of(("Mul", np.full(4, 400.0)), ("Mul", np.full(4, 1 / 400)))
    _, about = to_float16(content, given(np.full((4, 4), 100.0)))
    assert about["notes"] == [
        "little room: value_0 inside the network reaches 40000, and float16 ends at 65504"
    ]


def test_a_lone_constant_out_of_range_is_clipped_and_noted():
    content = chain_of(("Min", np.array(3.4e38)), ("Add", np.ones(4)))
    half_file, about = to_float16(content, given(np.ones((4, 4))))
    assert about["notes"] == ["constants beyond float16's range became its limit: w0 (3.40×10^38)"]
    outputs = predict(session(half_file), given(np.ones((4, 4))))
    np.testing.assert_allclose(outputs, 2)


def test_weights_below_the_smallest_number_are_counted():
    content = chain_of(("Mul", np.array([1e-9, -1e-9, 0.0, 1.0])))
    half_file, about = to_float16(content, given(np.ones((4, 4))))
    assert about["raised"] == 2
    assert "2 of 4 weights are closer to zero" in about["notes"][0]
    [tensor] = onnx.load_from_string(half_file).graph.initializer
    values = numpy_helper.to_array(tensor)
    tiny = np.finfo(np.float16).smallest_subnormal
    np.testing.assert_array_equal(values, np.array([tiny, -tiny, 0, 1], np.float16))


def test_the_largest_value_inside_is_found_and_infinities_are_passed_over():
    content = chain_of(("Mul", np.array([-5.0, 1, 1, 1])), ("Add", np.array([0, 0, 0, -np.inf])))
    name, size = largest_activation(content, given(np.full((2, 4), 3.0)))
    assert (name, size) == ("value_0", 15)
    to_float16(content, given(np.full((2, 4), 3.0)))


def transposed() -> bytes:
    """Return a file on which onnxruntime 1.24 to 1.32 crash once it is float16 (issue 28392)."""
    rows = helper.make_node("Transpose", ["input"], ["turned"], "turn", perm=[1, 0, 2])
    product = helper.make_node("MatMul", ["turned", "w"], ["multiplied"], "product")
    back = helper.make_node("Transpose", ["multiplied"], ["logits"], "back", perm=[1, 0, 2])
    weight = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    graph = helper.make_graph(
        [rows, product, back],
        "transposed",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 5])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def test_a_transposed_batch_before_a_product_opens_and_computes():
    values = np.random.default_rng(1).normal(size=(4, 3, 6))
    content, _ = to_float16(transposed(), given(values))
    expected = predict(session(transposed()), given(values))
    np.testing.assert_allclose(predict(session(content), given(values)), expected, atol=0.02)
    reshapes = [n for n in onnx.load_from_string(content).graph.node if n.op_type == "Reshape"]
    assert len(reshapes) == 1


def test_a_crash_on_opening_is_a_reason(monkeypatch):
    monkeypatch.setattr(half, "OPEN", "import os; os.abort()")
    with pytest.raises(StepFailed, match=r"onnxruntime crashes \(signal 6\) when it opens"):
        to_float16(chain_of(("Mul", np.ones(4))), given(np.ones((4, 4))))


def test_a_failure_on_opening_is_a_reason(monkeypatch):
    monkeypatch.setattr(half, "OPEN", "raise SystemExit('no such kernel')")
    with pytest.raises(StepFailed, match=r"onnxruntime fails \(no such kernel\) when it opens"):
        to_float16(chain_of(("Mul", np.ones(4))), given(np.ones((4, 4))))


def test_nothing_is_printed_and_no_file_is_left(capfd, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    to_float16(chain_of(("Mul", np.ones(4))), given(np.ones((4, 4))))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_that_of_float16():
    assert np.isfinite(np.float16(LARGEST))
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(LARGEST + 16))
