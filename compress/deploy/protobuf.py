"""Looking for messages inside an ONNX file, at whatever depth they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import onnx
from google.protobuf.message import Message

Kind = TypeVar("Kind", bound=Message)


def within(message: Message, *kinds: type[Kind]) -> Iterator[Kind]:
    """Yield all messages of some kinds inside another one, such as the tensors or nodes of a file.

    Those of functions, of sparse tensors and of the graphs inside nodes (If, Loop, Scan) count.
    """
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            if isinstance(inner, kinds):
                yield inner
            if not isinstance(inner, onnx.TensorProto):
                yield from within(inner, *kinds)
