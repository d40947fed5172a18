"""Batch norms that follow a convolution, folded into it in a traced program.

The exporter folds them as well, but only after it has traced the program once more, to decompose
it, and there each batch norm costs it time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

_ATEN = torch.ops.aten
CONVOLUTIONS = (
    *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default),
    *(_ATEN.conv1d.padding, _ATEN.conv2d.padding, _ATEN.conv3d.padding),
)
READERS = {*CONVOLUTIONS, _ATEN.batch_norm.default}
"""What else may use a weight that is folded: it only reads it."""
BIAS = 2
"""The place of a convolution's bias among its arguments."""


@torch.no_grad()
def fold_batch_norms(program: ExportedProgram) -> list[Tensor]:
    """Fold batch norms of inference into the convolutions before them; return the new weights.

    Folded is what a convolution gives to a batch norm and to nothing else, where both have weights
    of their own. No tensor of the traced module is written to.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held = {node: name for node, name in names.items() if name in program.state_dict}
    made: list[Tensor] = []
    for norm in list(program.graph.nodes):
        if norm.op == "call_function" and norm.target is _ATEN.batch_norm.default:
            made += _fold(norm, held, program.state_dict)
    if made:
        program.graph_module.recompile()
    return made


def _fold(norm: Node, held: Mapping[str, str], weights: dict[str, Any]) -> list[Tensor]:
    """Fold one batch norm where that can be done; return the new weight and bias."""
    arguments: tuple[Any, ...] = norm.args
    convolution, scale, shift, mean, variance, training, _, eps, _ = arguments
    if training or not isinstance(convolution, Node) or list(convolution.users) != [norm]:
        return []
    if convolution.target not in CONVOLUTIONS or convolution.kwargs:
        return []
    padded: list[Any] = [*convolution.args, *[None] * (BIAS + 1 - len(convolution.args))]
    _, weight, bias, *rest = padded
    # Without a bias the convolution takes over a tensor that the batch norm no longer needs.
    place = next(node for node in (bias, shift, mean) if node is not None)
    read: list[Any] = [
        node for node in (weight, bias, scale, shift, mean, variance) if node is not None
    ]
    if not all(isinstance(node, Node) and node.name in held for node in read):
        return []  # computed, from other weights or from the input
    users = {user.target for node in read for user in node.users}
    if not users <= READERS or len(weight.users) > 1 or len(place.users) > 1:
        return []

    def value(node: Any, usual: float) -> Tensor:
        known = torch.tensor(usual) if node is None else weights[held[node.name]]
        return known.double()

    factor = value(scale, 1) * (value(variance, 1) + eps).rsqrt()
    kernel = value(weight, 1)
    kind = weights[held[weight.name]].dtype
    folded = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    moved = (value(bias, 0) - value(mean, 0)) * factor + value(shift, 0)
    made = []
    for node, tensor in ((weight, folded), (place, moved)):
        old = weights[held[node.name]]
        new = tensor.to(kind)
        new = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        weights[held[node.name]] = new
        made.append(new)
    convolution.args = (*convolution.args[:BIAS], place, *rest)
    norm.replace_all_uses_with(convolution)
    norm.graph.erase_node(norm)
    return made
