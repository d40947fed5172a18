"""Batch norms of several processes that share a batch: normalized by the statistics of all of it.

Each process has a part of the batch, and one that normalized it by its own mean and variance would
train another net than one process does. As `nn.SyncBatchNorm` does, but on CPUs too, and whoever
calls `torch.nn.functional.batch_norm`: the layers stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from compress.ranks import ranks
from compress.training.out_of_memory import OutOfMemoryElsewhere


def has_batch_norms(module: nn.Module) -> bool:
    """Whether a module has batch norms, or keeps statistics as one does."""
    return any(isinstance(part, _BatchNorm) for part in module.modules()) or any(
        name.endswith("running_mean") for name, _ in module.named_buffers()
    )


class SynchronizedBatchNorms(TorchFunctionMode):
    """Within this context batch norms take the statistics of what all processes pass in.

    All must run the same batch norms in the same order, forwards and backwards. Those in eval mode,
    which use their running statistics, exchange nothing.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.batch_norm and kwargs.get("training"):
            return _batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Do as `torch.nn.functional.batch_norm` does in training, with the items of all processes.

    Raises ValueError if these give a single value per channel, which has no variance.
    """
    outputs, mean, variance, count = _Normalize.apply(inputs, weight, bias, eps)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        unbiased = variance * (count / (count - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return outputs


class _Normalize(torch.autograd.Function):
    """(inputs (N, C, ...), weight (C), bias (C), eps) -> outputs, mean (C), variance (C), count.

    The gradients of weight and bias are those of this process's items: like all others, they are
    added up after the backward pass. That of the inputs needs the sums over all items (Ioffe and
    Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(inputs)
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.save_for_backward(inputs, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.kind_of_bias = None if bias is None else bias.dtype
        outputs = functional.batch_norm(inputs, mean, variance, weight, bias, eps=eps)
        return outputs, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale, count = ctx.saved_tensors
        others = _others(inputs)
        shape = [-1 if dim == 1 else 1 for dim in range(inputs.ndim)]
        gradient = _wide(gradient)
        normalized = (_wide(inputs) - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = gradient.sum(others), (gradient * normalized).sum(others)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([of_bias, of_weight])
            _hear_of_failures()
            ranks().add([sums])
            along_bias, along_weight = (sums / count).unbind()
            centred = gradient - along_bias.view(shape) - normalized * along_weight.view(shape)
            slope = scale if weight is None else scale * weight
            of_inputs = (centred * slope.view(shape)).to(inputs.dtype)
        return (
            of_inputs,
            None if weight is None else of_weight.to(weight.dtype),
            None if ctx.kind_of_bias is None else of_bias.to(ctx.kind_of_bias),
            None,
        )


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count per channel over all processes' inputs.

    Variances are put together from those of the parts, since a difference of large sums of squares
    would lose its digits (Chan, Golub and LeVeque 1983).
    """
    variance, mean = torch.var_mean(_wide(inputs), _others(inputs), correction=0)
    count = torch.full_like(mean, inputs.numel() / inputs.shape[1])
    _hear_of_failures()
    means, variances, counts = ranks().gathered(torch.stack([mean, variance, count])).unbind(1)
    total = counts.sum(0)
    if float(total[0]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size "
            f"{tuple(inputs.shape)} in {ranks().count} processes"
        )
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, total


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least: bfloat16 keeps three digits only."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _others(inputs: Tensor) -> list[int]:
    """Return all dimensions but that of the channels."""
    return [dim for dim in range(inputs.ndim) if dim != 1]


def _hear_of_failures() -> None:
    """Raise OutOfMemoryElsewhere if another process gave up: it would be waited for forever."""
    if ranks().anywhere(False):
        raise OutOfMemoryElsewhere("memory ran out in another process")
