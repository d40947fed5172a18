"""Weights alone, and ranges that are found in every call."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from compress.deploy.export import read_metadata, stamp
from compress.deploy.graphs import parsed
from compress.deploy.saturation import PAIR, largest_pair
from compress.deploy.session import predict, session
from compress.deploy.stored import stored
from compress.deploy.verify import verify
from compress.deploy.versions import oldest_runtime, opset_of, with_opset
from compress.errors import StepFailed, UserError
from compress.int8.lower import Lowered
from compress.int8.uncalibrated import dynamic, weight_only

IMAGES = [(deploy_models.images(256, seed=9),)]


def integers(content: bytes) -> list[np.ndarray]:
    tensors = onnx.load_from_string(content).graph.initializer
    narrow = [one for one in tensors if one.data_type in (TensorProto.INT8, TensorProto.INT4)]
    found = [numpy_helper.to_array(one).astype(int) for one in narrow]
    return [one for one in found if one.ndim > 1]


@pytest.mark.parametrize("name", sorted(deploy_models.BUILDERS))
def test_weights_alone_are_within_half_a_step_and_all_else_is_float(name):
    source = stamp(deploy_models.float_file(name), {"labels": "[]"})
    made = weight_only(parsed(source))
    assert len(integers(made.content)) == sum(row["int8"] for row in made.nodes)
    nodes = onnx.load_from_string(source).graph.node
    assert [row["node"] for row in made.nodes] == [node.name for node in nodes]
    whys = {row["why"] for row in made.nodes if not row["int8"]}
    assert whys == {"only weights of convolutions and linear layers are stored as integers"}
    assert read_metadata(made.content) == read_metadata(source)
    kinds = {node.op_type for node in onnx.load_from_string(made.content).graph.node}
    assert not {"DequantizeLinear", "QuantizeLinear"} & kinds
    result = verify(made.content, deploy_models.built(name), IMAGES[0], lowered=True)
    assert result.ok, result.reason
    before = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(source).graph.initializer
    }
    after = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load_from_string(made.content).graph.initializer
    }
    for node in onnx.load_from_string(made.content).graph.node:
        if node.name.endswith("_weight_cast"):
            weight = node.input[0].removesuffix("_quantized")
            step = after[f"{weight}_scale"]
            wrong = np.abs(after[node.input[0]] * step - before[weight])
            assert (wrong <= step * 0.5 * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", sorted(deploy_models.BUILDERS))
@pytest.mark.parametrize("bits", [8, 4])
def test_a_runtime_makes_the_floats_once_and_computes_with_them(name, bits, tmp_path):
    content = weight_only(parsed(deploy_models.float_file(name)), bits).content
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options)
    opened = onnx.load(tmp_path / "opened.onnx").graph
    assert not {node.op_type for node in opened.node} & {"MatMulNBits", "DequantizeLinear"}
    assert not [node.name for node in opened.node if node.name.endswith(("_cast", "_scaled"))]
    usual, plain = (predict(session(content, optimize=on), IMAGES) for on in (True, False))
    assert np.abs(usual - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_as_many_levels_as_their_bits_give(bits):
    found = integers(weight_only(parsed(deploy_models.float_file("cnn")), bits).content)
    assert max(np.abs(one).max() for one in found) == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name", sorted(deploy_models.BUILDERS))
def test_weights_of_4_bits_take_half_a_byte(name):
    """The module with the weights that they stand for gives what the file gives."""
    source, model = deploy_models.float_file(name), deploy_models.built(name)
    made = weight_only(parsed(source), bits=4)
    proto = onnx.load_from_string(made.content)
    onnx.checker.check_model(proto, full_check=True)
    assert (opset_of(proto), oldest_runtime(proto)) == (21, "1.23")
    with pytest.raises(StepFailed, match="weights of 4 bits need opset 21, and 20 was asked for"):
        with_opset(made.content, 20)
    packed = [one for one in proto.graph.initializer if one.data_type == TensorProto.INT4]
    weights = [one for one in packed if len(one.dims) > 1]
    assert len(weights) == sum(row["int8"] for row in made.nodes)
    for one in packed:
        assert len(one.raw_data) == (int(np.prod(one.dims)) + 1) // 2
    assert stored(made.content)["precision"] == "int4"
    result = verify(made.content, model, IMAGES[0], lowered=True)
    assert result.ok, result.reason
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    plain = onnx.load_from_string(source)
    for one in plain.graph.initializer:
        if (whole := values.get(f"{one.name}_quantized")) is not None:
            weight = whole.astype(np.float32) * values[f"{one.name}_scale"]
            one.CopyFrom(numpy_helper.from_array(weight, one.name))
    by_hand = predict(session(plain.SerializeToString()), IMAGES)
    found = predict(session(made.content), IMAGES)
    assert np.abs(found - by_hand).max() <= 1e-5 * np.abs(by_hand).max()


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_calibrated_rounding_changes_answers_less(bits):
    source = deploy_models.float_file("cnn")
    before = predict(session(source), IMAGES)
    calibration = [(deploy_models.images(64, 3),)]

    def wrong(made: Lowered) -> float:
        return float(((predict(session(made.content), IMAGES) - before) ** 2).sum())

    nearest, calibrated = (weight_only(parsed(source), bits, (), of) for of in (None, calibration))
    assert wrong(calibrated) < 0.8 * wrong(nearest)
    for one, other in zip(integers(nearest.content), integers(calibrated.content), strict=True):
        assert np.abs(other).max() <= 2 ** (bits - 1) - 1
        assert (one != other).any()


def test_layers_of_other_bits_stay_in_bytes():
    source = deploy_models.float_file("mlp")
    first, *_ = [row["layer"] for row in weight_only(parsed(source)).nodes if row["int8"]]
    made = weight_only(parsed(source), ((first, 4),))
    kinds = {
        one.name: one.data_type
        for one in onnx.load_from_string(made.content).graph.initializer
        if one.name.endswith("weight_quantized")
    }
    assert kinds[f"{first}.weight_quantized"] == TensorProto.INT4
    assert sorted(set(kinds.values())) == [TensorProto.INT8, TensorProto.INT4]


def test_a_file_whose_operators_would_mean_something_else_is_not_given_another_opset():
    model = parsed(deploy_models.float_file("cnn"))
    last = model.graph[-1]
    norm = ir.node("GroupNormalization", [last.inputs[0]] * 3, {"num_groups": 1}, name="norm")
    model.graph.insert_before(last, norm)
    with pytest.raises(StepFailed, match="GroupNormalization means something else"):
        weight_only(model, bits=4)
    assert weight_only(model, bits=5).content


def test_ranges_of_every_call_need_no_calibration_and_saturate_nowhere():
    source = stamp(deploy_models.float_file("mlp"), {"labels": "[]"})
    made = dynamic(parsed(source), portable=True)
    kinds = [node.op_type for node in onnx.load_from_string(made.content).graph.node]
    done = [row["type"] for row in made.nodes if row["int8"]]
    assert set(done) == {"Gemm"}
    assert kinds.count("MatMulInteger") == len(done) > 1
    assert len(made.nodes) == len(onnx.load_from_string(source).graph.node)
    left = [row["why"] for row in made.nodes if not row["int8"]]
    assert set(left) == {"only linear layers are int8"}
    assert all(largest_pair(one.astype(int), 1).max() <= PAIR for one in integers(made.content))
    assert read_metadata(made.content) == read_metadata(source)
    before, after = predict(session(source), IMAGES), predict(session(made.content), IMAGES)
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()


def test_convolutions_stay_float_under_changing_ranges():
    made = dynamic(parsed(deploy_models.float_file("cnn")), portable=True)
    rows = {row["type"]: row for row in made.nodes}
    assert rows["Gemm"]["int8"]
    assert not rows["Conv"]["int8"]
    assert rows["Conv"]["why"] == "its integer kernel for changing ranges is slow"


def test_what_is_excluded_stays_float_and_nothing_left_is_refused():
    source = parsed(deploy_models.float_file("mlp"))
    whole = weight_only(source)
    first, *others = [row["node"] for row in whole.nodes if row["int8"]]
    left = weight_only(source, exclude=(first,))
    assert [row["node"] for row in left.nodes if row["int8"]] == others
    [row] = [row for row in left.nodes if row["node"] == first]
    assert row["why"] == "it was excluded"
    with pytest.raises(UserError, match="all of them are excluded"):
        dynamic(source, portable=True, exclude=("Gemm",))


def test_weights_of_which_none_is_left_are_refused() -> None:
    with pytest.raises(UserError, match="none is left"):
        weight_only(parsed(deploy_models.float_file("cnn")), exclude=("*",))
