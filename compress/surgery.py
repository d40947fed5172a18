"""Finding and replacing layers of a module."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from compress.heads import heads_in_training
from compress.model import frozen_names
from compress.tasks.base import Tensors

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def matrix_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return, by name, the weights that are multiplied with inputs, attention's included."""
    weights: dict[str, nn.Parameter] = {}
    for path, layer in module.named_modules():
        names = ["weight"] if isinstance(layer, WEIGHTED) else []
        if isinstance(layer, nn.MultiheadAttention):
            names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        for name in names:
            if isinstance(parameter := getattr(layer, name), nn.Parameter):
                weights[f"{path}.{name}" if path else name] = parameter
    return weights


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule at `path`, in its mode (train or eval)."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    layer.train(owner.training)
    setattr(owner, leaf, layer)


def replace_everywhere(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a layer in every place of another one, which may have several names."""
    named = module.named_modules(remove_duplicate=False)
    for path in [path for path, layer in named if layer is old]:
        replace_layer(module, path, new)


def freeze(module: nn.Module, names: Collection[str]) -> None:
    for name in names:
        module.get_parameter(name).requires_grad_(False)


@contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """Let gradients flow to every parameter within this context, also to those that are frozen."""
    frozen = frozen_names(module)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        freeze(module, frozen)


def output_layers(module: nn.Module, example: Tensors) -> list[str]:
    """Return the paths of the weighted layers that produce the logits, auxiliary heads' included.

    The autograd graph is followed from the outputs back to the first weights of convolutions or
    linear layers on every path, whatever lies between (norms, activations, pooling).
    """
    owners = {
        id(layer.weight): path
        for path, layer in module.named_modules()
        if isinstance(layer, WEIGHTED)
    }
    with thawed(module), torch.enable_grad():
        outputs = heads_in_training(module, example)
    layers: list[str] = []
    seen, waiting = set(), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        direct = _direct_weights(node, owners)
        layers += [path for path in direct if path not in layers]
        if not direct:
            waiting += [following for following, _ in node.next_functions]
    return layers


def _direct_weights(node: torch.autograd.graph.Node, owners: dict[int, str]) -> list[str]:
    """Return the layers whose weight enters this node, as it is or transposed."""
    direct = []
    for following, _ in node.next_functions:
        while following is not None and following.name().startswith(("TBackward", "ViewBackward")):
            following = following.next_functions[0][0]
        variable = getattr(following, "variable", None)
        if variable is not None and id(variable) in owners:
            direct.append(owners[id(variable)])
    return direct
