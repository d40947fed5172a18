"""In what a file's weights are stored: read from the file, whatever step wrote it."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.deploy.half import to_float16
from compress.deploy.saturation import PAIR
from compress.deploy.stored import stored
from compress.int8.lower import lower
from compress.peers.ort_quantize import quantize_onnx

CALIBRATION = [(deploy_models.images(20, 1),)]


@pytest.mark.parametrize("name", sorted(deploy_models.BUILDERS))
def test_our_own_files(name: str) -> None:
    content = deploy_models.float_file(name)
    assert stored(content) == {"precision": "float32"}
    assert stored(to_float16(content, CALIBRATION)[0]) == {"precision": "float16"}
    for narrow in (False, True):
        int8, _ = quantize_onnx(content, CALIBRATION, reduce_range=narrow)
        found = stored(int8)
        assert found["precision"] == "int8"
        assert (found["int8_pair"] <= PAIR) == narrow
    ours = stored(lower(content, CALIBRATION).content)
    assert PAIR - 8 <= ours["int8_pair"] <= PAIR


def file(*weights: np.ndarray, constant: np.ndarray | None = None) -> bytes:
    nodes = [helper.make_node("Identity", ["w0"], ["y"])]
    if constant is not None:
        value = numpy_helper.from_array(constant)
        nodes.append(helper.make_node("Constant", [], ["c"], value=value))
    tensors = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "made up", [], [output], tensors))
    return bytes(model.SerializeToString())


def test_somebody_elses_files() -> None:
    wide, half = np.ones((2, 2), np.float32), np.ones((2, 2), np.float16)
    narrow = np.array([[-100, 5], [-20, 6]], np.int8)
    assert stored(file(wide, np.ones(3, np.int8))) == {"precision": "float32"}, "no weight"
    assert stored(file(wide, half)) == {"precision": "float16"}
    # Which axis counts output channels is not known: neighbours along both count.
    assert stored(file(wide, half, narrow)) == {"precision": "int8", "int8_pair": 120}
    assert stored(file(wide, constant=narrow)) == {"precision": "int8", "int8_pair": 120}
    unsigned = np.full((1, 2), 200, np.uint8)
    assert stored(file(wide, unsigned)) == {"precision": "int8", "int8_pair": 0}
    lowest = np.array([[-128, 5]], np.int8)
    assert stored(file(lowest))["int8_pair"] == 128


def test_the_axis_of_scales_says_which_weights_are_neighbours() -> None:
    narrow = np.array([[-100, 5], [-20, 6]], np.int8)
    for axis, pair in ((0, 100), (1, 120)):
        model = onnx.load_from_string(file(narrow))
        scale = numpy_helper.from_array(np.ones(2, np.float32), "scale")
        model.graph.initializer.append(scale)
        node = helper.make_node("DequantizeLinear", ["w0", "scale"], ["d"], axis=axis)
        model.graph.node.append(node)
        assert stored(model.SerializeToString())["int8_pair"] == pair
