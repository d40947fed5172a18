"""Weights alone, and ranges that are found in every call."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.deploy.export import read_metadata, stamp
from compress.deploy.graphs import parsed
from compress.deploy.saturation import PAIR, largest_pair
from compress.deploy.session import predict, session
from compress.deploy.verify import verify
from compress.errors import UserError
from compress.int8.uncalibrated import dynamic, weight_only

IMAGES = [(deploy_models.images(256, seed=9),)]


def integers(content: bytes) -> list[np.ndarray]:
    tensors = map(numpy_helper.to_array, onnx.load_from_string(content).graph.initializer)
    return [one for one in tensors if one.dtype == np.int8 and one.ndim > 1]


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
    assert "DequantizeLinear" in kinds
    assert "QuantizeLinear" not in kinds
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
        if node.op_type == "DequantizeLinear":
            q, scale = after[node.input[0]], after[node.input[1]]
            axis = node.attribute[0].i
            step = scale.reshape([-1 if i == axis else 1 for i in range(q.ndim)])
            weight = before[node.input[0].removesuffix("_quantized")]
            assert (np.abs(q * step - weight) <= step * 0.5 * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_as_many_levels_as_their_bits_give(bits):
    found = integers(weight_only(parsed(deploy_models.float_file("cnn")), bits).content)
    assert max(np.abs(one.astype(int)).max() for one in found) == 2 ** (bits - 1) - 1


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
