"""Reading an ONNX file from a stranger: every claim it makes is checked before it is believed.

What a file may name beside itself is data, in plain files of its own folder. Nothing is allocated
by a size that the file merely claims, and operators that load code or further files are refused.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError

from compress import amounts
from compress.errors import UserError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators of other domains come from libraries that somebody else's code registers."""
LOADERS = {"EPContext"}
"""Operators that name a further file, which a provider would load and run."""
MOST_BYTES = 2**31 - 1
"""Of one protobuf message."""
WIDTHS = {"STRING": 0, "UINT4": 0.5, "INT4": 0.5, "FLOAT4E2M1": 0.5, "UINT2": 0.25, "INT2": 0.25}
"""Bytes of an element where numpy does not tell."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the graph of a file, without its external data, every tensor's size checked.

    Raises UserError if the file is damaged, claims sizes that it does not have, refers to data
    elsewhere than in plain files beside it, or has operators that load code or files.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise _refused(
                path, f"it has {amounts.size(size)}, and one ONNX message has at most 2 GB"
            )
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise _refused(path, f"it is damaged or no ONNX file ({error})") from error
    if not model.HasField("graph") or not model.opset_import:
        raise _refused(path, "it is damaged or no ONNX file: it holds no graph")
    for node in _nodes(model):
        if node.domain not in DOMAINS:
            raise _refused(
                path, f"the operator {node.op_type!r} is of the foreign domain {node.domain!r}"
            )
        if node.op_type in LOADERS:
            raise _refused(path, f"the operator {node.op_type!r} loads a further file")
    for tensor in _tensors(model):
        _check_tensor(path, tensor)
    return model


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is refused: {reason}")


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the graph, functions, and every graph inside a node (of If, Loop, Scan)."""
    ahead: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while ahead:
        one = ahead.pop()
        yield one
        for node in one.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    ahead.append(attribute.g)
                ahead += attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    name = tensor.name or "without a name"
    if any(side < 0 for side in tensor.dims):
        raise _refused(path, f"the tensor {name!r} has a negative size {list(tensor.dims)}")
    items = math.prod(tensor.dims)
    width = _width(path, tensor)
    needed = math.ceil(Fraction(width) * items)  # floats end at 2^1024
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(path, tensor, name, needed)
    elif tensor.HasField("raw_data"):
        if width and len(tensor.raw_data) != needed:
            raise _refused(
                path,
                f"the tensor {name!r} claims {needed} bytes ({list(tensor.dims)}) and holds "
                f"{len(tensor.raw_data)}",
            )
    elif items != _held(tensor, items, width):
        raise _refused(
            path, f"the tensor {name!r} claims {items} values and holds {_held(tensor, items, 1)}"
        )


def _width(path: Path, tensor: onnx.TensorProto) -> float:
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in WIDTHS:
            return WIDTHS[kind]
        return float(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (ValueError, KeyError, TypeError):
        raise _refused(
            path, f"the tensor {tensor.name!r} is of the unknown type {tensor.data_type}"
        ) from None


def _held(tensor: onnx.TensorProto, items: int, width: float) -> int:
    """Return how many values stand in the fields of a tensor (complex ones stand as pairs)."""
    fields = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
    counts = [len(getattr(tensor, field)) for field in fields]
    if sum(1 for count in counts if count) > 1:
        return -1
    held = sum(counts)
    kind = tensor.data_type
    if kind in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return held // 2
    packed = 0 < width < 1 and held == math.ceil(Fraction(width) * items)
    return items if packed else held


def _check_external(path: Path, tensor: onnx.TensorProto, name: str, needed: int) -> None:
    told = {entry.key: entry.value for entry in tensor.external_data}
    place = beside(path, told.get("location", ""), f"the data of the tensor {name!r}")
    try:
        offset = int(told.get("offset", "0") or 0)
        length = int(told.get("length", str(needed)) or needed)
    except ValueError:
        raise _refused(path, f"the data of {name!r} has no sound offset and length") from None
    size = place.stat().st_size
    if offset < 0 or length < 0 or offset + length > size or length != needed:
        raise _refused(
            path,
            f"the tensor {name!r} needs {needed} bytes and claims {length} from {offset} of "
            f"{place.name}, which has {size}",
        )


def beside(path: Path, location: str, what: str) -> Path:
    """Return the plain file beside `path` that a location names.

    Raises UserError for anything that leads elsewhere: an absolute path, `..`, a symbolic link, a
    hard link to a file that has other names, or what is no file.
    """
    pure, windows = PurePosixPath(location), PureWindowsPath(location)
    parts = set(pure.parts) | set(windows.parts)
    if (
        not pure.parts
        or "\0" in location
        or pure.is_absolute()
        or windows.drive
        or windows.root
        or ".." in parts
    ):
        raise _refused(path, f"{what} lies at {location!r}, which is not beside the file")
    place = path.parent
    for part in pure.parts:
        place = place / part
        try:
            found = os.lstat(place)
        except OSError as error:
            raise _refused(path, f"{what} should lie at {location!r}: {error.strerror}") from error
        if stat.S_ISLNK(found.st_mode):
            raise _refused(path, f"{what} lies behind a symbolic link, {location!r}")
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, f"{what} lies in {location!r}, which is no plain file")
    if found.st_nlink > 1:
        raise _refused(path, f"{what} lies in {location!r}, a file with further names (hard links)")
    return place
