"""Finding and replacing layers of a module."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from compress.heads import heads_in_training
from compress.tasks.base import Tensors

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def weighted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, layer) of every convolution and linear layer, each layer once."""
    for path, layer in module.named_modules():
        # The output projection of nn.MultiheadAttention is read past its forward method.
        if isinstance(layer, WEIGHTED) and not isinstance(
            layer, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            yield path, layer


def matrix_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return, by name, the weights that are multiplied with inputs, attention's included."""
    found: dict[str, nn.Parameter] = {}
    for path, layer in module.named_modules():
        names = ["weight"] if isinstance(layer, WEIGHTED) else []
        if isinstance(layer, nn.MultiheadAttention):
            names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        for name in names:
            if isinstance(parameter := getattr(layer, name), nn.Parameter):
                found[f"{path}.{name}" if path else name] = parameter
    return found


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule at `path`, in its mode (train or eval)."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    layer.train(owner.training)
    setattr(owner, leaf, layer)


def output_layers(module: nn.Module, example: Tensors) -> list[str]:
    """Return the paths of the weighted layers that produce the logits, auxiliary heads' included.

    Found by walking the autograd graph from the outputs to the first weights of convolutions
    or linear layers on every way, whatever lies between (norms, activations, pooling).
    """
    owners = {
        id(layer.weight): path
        for path, layer in module.named_modules()
        if isinstance(layer, WEIGHTED)
    }
    wanted = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad():
            outputs = heads_in_training(module, example)
    finally:
        for parameter in wanted:
            parameter.requires_grad_(False)
    found: list[str] = []
    seen, waiting = set(), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        direct = _direct_weights(node, owners)
        found += [path for path in direct if path not in found]
        if not direct:
            waiting += [following for following, _ in node.next_functions]
    return found


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
