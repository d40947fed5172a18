"""Reading an ONNX file from a stranger: every claim it makes is checked before it is believed.

What a file may name beside itself is data, in plain files of its own folder. Nothing is allocated
by a size that the file merely claims, and operators that load code or further files are refused.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compress.deploy.protobuf import within
from compress.errors import UserError
from compress.system import amounts

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators of other domains come from libraries that somebody else's code registers."""
LOADERS = {"EPContext"}
"""Operators that name a further file, which a provider would load and run."""
MOST_BYTES = 2**31 - 1
"""Of one protobuf message."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the graph of a file, without its external data, every tensor's size checked.

    Raises UserError if the file is damaged, claims sizes that it does not have, refers to data
    elsewhere than in plain files beside it, or has operators that load code or files.
    """
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
    for node in within(model, onnx.NodeProto):
        if node.domain not in DOMAINS:
            raise _refused(
                path, f"the operator {node.op_type!r} is of the foreign domain {node.domain!r}"
            )
        if node.op_type in LOADERS:
            raise _refused(path, f"the operator {node.op_type!r} loads a further file")
    try:
        # Also that external data are plain files beside this one, and no links to elsewhere.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        first = str(error).strip().partition("\n")[0]
        raise _refused(path, f"ONNX's checker says: {first}") from error
    for tensor in within(model, onnx.TensorProto):
        _check_size(path, tensor)
    return model


def _check_size(path: Path, tensor: onnx.TensorProto) -> None:
    """Raise UserError unless a tensor has just the values that its shape and type ask for."""
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError("it has a negative size")
        onnx.numpy_helper.to_array(tensor, str(path.parent))
    except Exception as error:  # of claims that are not true, numpy may raise anything
        raise _refused(
            path, f"the tensor {tensor.name!r} does not hold what it claims: {error}"
        ) from error


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is refused: {reason}")
