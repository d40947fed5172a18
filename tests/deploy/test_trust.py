"""ONNX files from strangers: what they claim is checked, what they name stays beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.deploy.trust import read_onnx
from compress.errors import UserError

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(weight: TensorProto | None = None, *more: onnx.NodeProto) -> onnx.ModelProto:
    weight = weight or numpy_helper.from_array(WEIGHT, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), *more],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(location: str, **more: object) -> TensorProto:
    tensor = TensorProto(name="w", dims=[3, 4], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor


def saved(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_honest_files_are_read(tmp_path: Path) -> None:
    assert read_onnx(saved(tmp_path / "a.onnx", model())).graph.node[0].op_type == "MatMul"
    (tmp_path / "w.bin").write_bytes(b"1234" + WEIGHT.tobytes())
    path = saved(tmp_path / "b.onnx", model(external("w.bin", offset=4, length=48)))
    read_onnx(path)
    answer = onnxruntime.InferenceSession(path).run(None, {"x": np.eye(3, dtype=np.float32)})
    np.testing.assert_array_equal(answer[0], WEIGHT)


KINDS = [
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8),
    *(TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
    *(TensorProto.UINT64, TensorProto.COMPLEX64, TensorProto.BFLOAT16),
]


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_tensors_of_every_kind_pass_in_typed_fields_and_raw(
    tmp_path: Path, kind: int, shape: tuple[int, ...]
) -> None:
    values = np.ones(shape, helper.tensor_dtype_to_np_dtype(kind))
    for raw in (False, True):
        tensor = helper.make_tensor("c", kind, shape, values.tobytes() if raw else values, raw)
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        found = read_onnx(saved(tmp_path / "x.onnx", model(None, node)))
        assert found.graph.node[1].attribute[0].t == tensor


def linked(folder: Path) -> str:
    (folder / "link.bin").symlink_to(folder.parent / "secret")
    return "link.bin"


def through(folder: Path) -> str:
    (folder / "sub").symlink_to(folder.parent)
    return "sub/secret"


def hard(folder: Path) -> str:
    os.link(folder.parent / "secret", folder / "hard.bin")
    return "hard.bin"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


PLACES: dict[str, Callable[[Path], str]] = {
    "above": lambda folder: "../secret",
    "above, hidden": lambda folder: "a/../../secret",
    "above, Windows": lambda folder: "..\\secret",
    "absolute": lambda folder: str(folder.parent / "secret"),
    "absolute, Windows": lambda folder: "C:\\secret",
    "share, Windows": lambda folder: "\\\\host\\secret",
    "nowhere": lambda folder: "",
    "missing": lambda folder: "gone.bin",
    "the folder itself": lambda folder: ".",
    "device": lambda folder: "/dev/zero",
    "zero byte": lambda folder: "w\0.bin",
    "symbolic link": linked,
    "through a linked folder": through,
    "hard link": hard,
    "pipe": pipe,
}


@pytest.mark.parametrize("place", PLACES)
def test_data_elsewhere_is_refused(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    location = PLACES[place](folder)
    path = saved(folder / "m.onnx", model(external(location)))
    with pytest.raises(UserError, match="is refused"):
        read_onnx(path)


@pytest.mark.parametrize(
    "claim",
    [
        {"offset": 10**12},
        {"length": 10**12},
        {"offset": -8},
        {"length": 47},
        {"length": "many"},
        {"offset": 1},
    ],
    ids=str,
)
def test_sizes_of_external_data_are_those_of_the_file(
    tmp_path: Path, claim: dict[str, object]
) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(UserError, match="is refused"):
        read_onnx(saved(tmp_path / "m.onnx", model(external("w.bin", **claim))))


def claiming(*dims: int) -> TensorProto:
    tensor = numpy_helper.from_array(WEIGHT, "w")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    return tensor


def typed(count: int) -> TensorProto:
    return TensorProto(name="w", dims=[3, 4], data_type=1, float_data=[0.0] * count)


def two_fields() -> TensorProto:
    return TensorProto(name="w", dims=[2], data_type=1, float_data=[0.0], int32_data=[0])


@pytest.mark.parametrize(
    "weight",
    [
        *(claiming(2**40, 2**20), claiming(-3, -4), claiming(3, 5), claiming()),
        *(typed(0), typed(11), typed(13), two_fields()),
        TensorProto(name="w", dims=[3, 4], data_type=99, raw_data=b"1"),
        TensorProto(name="w", dims=[3, 4], raw_data=b"1"),
    ],
    ids=range(10),
)
def test_a_tensor_holds_what_it_claims(tmp_path: Path, weight: TensorProto) -> None:
    with pytest.raises(UserError, match="is refused"):
        read_onnx(saved(tmp_path / "m.onnx", model(weight)))


def inside_if() -> onnx.NodeProto:
    bad = helper.make_node("Constant", [], ["c"], value=external("../secret"))
    inner = helper.make_graph([bad], "then", [], [])
    return helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Run", ["x"], ["z"], domain="ai.onnx.contrib"),
        helper.make_node("PyOp", ["x"], ["z"], domain="com.stranger"),
        helper.make_node("EPContext", [], ["z"], domain="com.microsoft", ep_cache_context="x.so"),
        inside_if(),
    ],
    ids=["contrib", "foreign", "context", "hidden in a branch"],
)
def test_operators_that_load_code_or_files_are_refused(
    tmp_path: Path, node: onnx.NodeProto
) -> None:
    with pytest.raises(UserError, match="is refused"):
        read_onnx(saved(tmp_path / "m.onnx", model(None, node)))


def test_functions_are_looked_into(tmp_path: Path) -> None:
    proto = model()
    node = helper.make_node("Constant", [], ["c"], value=external("../secret"))
    opsets = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("", "F", [], ["c"], [node], opsets))
    with pytest.raises(UserError, match="should be file inside"):
        read_onnx(saved(tmp_path / "m.onnx", proto))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x08\x0a", os.urandom(2000)], ids=range(4))
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError, match="is refused"):
        read_onnx(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="cannot read"):
        read_onnx(tmp_path / "gone.onnx")
