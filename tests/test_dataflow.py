"""What a tensor was computed from, whatever lies between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.dataflow import DataFlow


def into(target: Tensor, value: Tensor) -> Tensor:
    target[1:] = value[1:]
    return target


def out(a: Tensor, b: Tensor) -> Tensor:
    result = torch.empty(4)
    torch.add(a, b, out=result)
    return result


def foreach(a: Tensor, b: Tensor) -> Tensor:
    result = torch.zeros(4)
    torch._foreach_add_([result], [a])
    return result


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b, c: a + b, "ab"),
        (lambda a, b, c: (a * 2).detach(), "a"),
        (lambda a, b, c: a.argmax() + b.round(), "ab"),
        (lambda a, b, c: torch.zeros(4), ""),
        (lambda a, b, c: torch.cat([a, c]).view(2, 4)[0], "ac"),
        (lambda a, b, c: into(a.clone(), b), "ab"),
        (lambda a, b, c: a.clone().view(2, 2).add_(c.view(2, 2)), "ac"),
        (lambda a, b, c: out(b, c), "bc"),
        (foreach, "a"),
        (lambda a, b, c: torch.where(a > 0, b, 1.0), "ab"),
        (lambda a, b, c: torch.stack([a, b]).unbind()[0], "ab"),
        (lambda a, b, c: (a + b, c * 2)[1], "c"),
    ],
)
def test_sources(function: Callable[..., Tensor], expected: str) -> None:
    tensors = [torch.ones(4), torch.ones(4), torch.ones(4)]
    count = function.__code__.co_argcount
    with torch.no_grad(), DataFlow(tensors) as flow:
        result = function(*tensors[:count])
    names = "".join(n for number, n in enumerate("abc") if flow.sources(result) >> number & 1)
    assert names == expected


def test_a_view_of_what_is_changed_later_has_the_later_sources() -> None:
    a, b = torch.ones(4), torch.ones(4)
    with torch.no_grad(), DataFlow([a, b]) as flow:
        whole = a.clone()
        part = whole[:2]
        whole.mul_(b)
    assert flow.sources(part) == 0b11


def test_memory_that_is_used_again_is_forgotten() -> None:
    a = torch.ones(1000)
    with torch.no_grad(), DataFlow([a]) as flow:
        for _ in range(50):
            gone = a + 1
            place = gone.untyped_storage()._cdata
            del gone
            fresh = torch.zeros(1000)
            if fresh.untyped_storage()._cdata == place:
                break
        assert flow.sources(fresh) == 0
