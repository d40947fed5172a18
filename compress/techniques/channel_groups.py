"""Groups of coupled channels: finding those that can be cut soundly, and cutting them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.heads import as_in_training, has_auxiliary, heads_in_training, tensors_of
from compress.model import forward, frozen_names
from compress.surgery import freeze, output_layers, thawed
from compress.system.amounts import decimal
from compress.tasks.base import Tensors

OUTPUTS_SECOND = (nn.Embedding, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose outputs are the second dimension of their weights."""
OUTPUT = "it produces the model's output"


@dataclass
class Cut:
    """A pruned module; by layer, the indices removed from its output, in the original's count."""

    module: nn.Module
    removed: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


def cut_channels(
    module: nn.Module, inputs: Tensors, widths: Mapping[str, float], round_to: int
) -> Cut:
    """Cut, in a copy, each group to the width given for its root, rounded to `round_to`.

    `widths` maps the path of a group's root layer to the number of channels to keep; it is
    rounded to the nearest multiple, at least one multiple, never beyond the present width.
    """
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    module = copy.deepcopy(module)
    cut, frozen = Cut(module), frozen_names(module)
    graph = _graph(module, inputs)
    remaining: dict[str, Tensor] = {}
    for path, width in widths.items():
        root = module.get_submodule(path)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        count = graph.get_out_channels(root)
        group = graph.get_pruning_group(root, prune, list(range(count)))
        partitions = _partitions(graph, group, count)
        keep = _rounded(width, count, round_to * partitions)
        cut.kept[path] = count
        if keep >= count:
            continue
        scores = GroupMagnitudeImportance(p=2)(group)
        if scores is None or len(scores) != count:
            continue
        group = graph.get_pruning_group(root, prune, _least(scores, count - keep, partitions))
        if graph.check_pruning_group(group):
            _record(graph, group, remaining, cut)
            group.prune()
            cut.kept[path] = keep
    freeze(module, frozen)  # what was cut are new tensors
    module.eval()
    return cut


def _graph(module: nn.Module, inputs: Tensors) -> Any:
    from torch_pruning import DependencyGraph  # not above: it imports timm, which takes seconds

    with warnings.catch_warnings():
        # It warns of bare parameters; whether cutting them is right is checked by arithmetic.
        warnings.simplefilter("ignore")
        with thawed(module), torch.enable_grad():
            graph = DependencyGraph()
            one = tuple(tensor[:1] for tensor in inputs)
            through = _through_all_heads if has_auxiliary(module) else None
            return graph.build_dependency(module, one, forward_fn=through, verbose=False)


def _through_all_heads(module: nn.Module, example: Tensors) -> list[Tensor]:
    """Return all outputs of training mode: what auxiliary heads take is cut along."""
    with as_in_training(module):
        outputs = tensors_of(module(*example)).values()
    return [output for output in outputs if output.grad_fn is not None]


def _partitions(graph: Any, group: Any, count: int) -> int:
    """Return into how many equal parts the channels fall because of grouped convolutions."""
    parts = 1
    for dependency, _ in group:
        layer = dependency.target.module
        groups = getattr(layer, "groups", 1)
        if isinstance(layer, nn.Conv2d) and 1 < groups < layer.out_channels:
            parts = max(parts, groups)
        if isinstance(layer, nn.GroupNorm):
            parts = max(parts, layer.num_groups)
    return parts if count % parts == 0 else 1


def _rounded(width: float, count: int, multiple: int) -> int:
    if width >= count:
        return count
    return min(count, max(multiple, round(width / multiple) * multiple))


def _least(scores: Tensor, number: int, partitions: int) -> list[int]:
    """Return the indices of least score, the same number of them from every partition."""
    parts = scores.view(partitions, -1)
    size = parts.shape[1]
    chosen = parts.argsort(dim=1, stable=True)[:, : number // partitions]
    return sorted((chosen + torch.arange(partitions)[:, None] * size).flatten().tolist())


def _record(graph: Any, group: Any, remaining: dict[str, Tensor], cut: Cut) -> None:
    """Record which outputs of which layers a group removes, in the numbering of the original."""
    names = {layer: path for path, layer in cut.module.named_modules()}
    for dependency, index in group:
        layer = dependency.target.module
        if layer not in names or not graph.is_out_channel_pruning_fn(dependency.handler):
            continue
        if not isinstance(getattr(layer, "weight", None), Tensor):
            continue
        path = names[layer]
        before = remaining.get(path, torch.arange(graph.get_out_channels(layer)))
        cut.removed.setdefault(path, []).extend(before[index].tolist())
        mask = torch.ones(len(before), dtype=torch.bool)
        mask[index] = False
        remaining[path] = before[mask]


def zeroed(module: nn.Module, removed: Mapping[str, Collection[int]]) -> nn.Module:
    """Return a copy in which the given outputs of the given layers are exactly zero."""
    result = copy.deepcopy(module)
    with torch.no_grad():
        for path, index in removed.items():
            layer = result.get_submodule(path)
            axis = 1 if isinstance(layer, OUTPUTS_SECOND) else 0
            for tensor, dim in ((layer.weight, axis), (getattr(layer, "bias", None), 0)):
                if isinstance(tensor, Tensor):
                    tensor.index_fill_(dim, torch.tensor(list(index)), 0)
    return result


def differs_from_zeroed(
    module: nn.Module, cut: Cut, inputs: Tensors, tolerance: float = 1e-4
) -> str:
    """Say how the cut module differs from the original with those channels zeroed ('' if not)."""
    try:
        expected = forward(zeroed(module, cut.removed).eval(), inputs)
        outputs = forward(cut.module.eval(), inputs)
        with torch.no_grad():
            pair = [heads_in_training(m, inputs) for m in (module, cut.module) if has_auxiliary(m)]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"it does not run: {error}"
    if outputs.shape != expected.shape:
        return f"outputs of shape {tuple(outputs.shape)}, not {tuple(expected.shape)}"
    shapes = [[tuple(head.shape) for head in heads] for heads in pair]
    if shapes and shapes[0] != shapes[1]:
        return f"auxiliary heads of shapes {shapes[1][1:]}, not {shapes[0][1:]}"
    largest = float((outputs - expected).abs().max())
    limit = tolerance * max(float(expected.abs().max()), 1e-6)
    return "" if largest <= limit else f"outputs differ by {decimal(largest)}"


def sound_roots(module: nn.Module, inputs: Tensors) -> tuple[dict[str, int], dict[str, str]]:
    """Return the groups that can be cut: root path -> channels; and the others, with a reason.

    Tried by arithmetic on a copy with random weights: half of the channels of every group are
    cut, and the outputs compared with those of the copy in which these channels are zero.
    Random, because trained or freshly initialised weights may hide an error behind zeros.
    """
    trial = _randomized(module)
    outputs = set(output_layers(module, inputs))
    try:
        graph = _graph(trial, inputs)
    except ImportError:
        raise
    except Exception as error:
        return {}, {"the whole model": _unable(error)}
    names = {layer: path for path, layer in trial.named_modules()}
    ignored = [trial.get_submodule(path) for path in outputs]
    roots: dict[str, int] = {}
    coupled: dict[str, int] = {}
    for group in graph.get_all_groups(ignored_layers=ignored):
        root = group[0].dep.target.module
        if root not in names:
            continue
        roots[names[root]] = graph.get_out_channels(root)
        coupled[names[root]] = sum(
            graph.is_out_channel_pruning_fn(dependency.handler) for dependency, _ in group
        )
    protected = dict.fromkeys(sorted(outputs), OUTPUT)
    if _trial_reason(trial, inputs, roots):
        # Widely coupled groups (residual streams) are the usual suspects: try them first.
        for path in sorted(roots, key=lambda path: -coupled[path]):
            if reason := _trial_reason(trial, inputs, {path: roots[path]}):
                protected[path] = reason
                del roots[path]
                if not _trial_reason(trial, inputs, roots):
                    break
    return roots, protected


def _trial_reason(trial: nn.Module, inputs: Tensors, roots: Mapping[str, int]) -> str:
    if not roots:
        return ""
    widths = {path: count / 2 for path, count in roots.items()}
    try:
        cut = cut_channels(trial, inputs, widths, round_to=1)
    except ImportError:
        raise
    except Exception as error:
        # Whatever a foreign graph trips over, the answer is the same: this group stays whole.
        return _unable(error)
    # A wrong cut is off by a tenth or more; rounding in float32 by less than a thousandth.
    return differs_from_zeroed(trial, cut, inputs, tolerance=1e-3)


def _unable(error: Exception) -> str:
    return f"Torch-Pruning cannot cut it: {type(error).__name__}: {error}"


def _randomized(module: nn.Module) -> nn.Module:
    result = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.ndim > 1:
                parameter.copy_(noise(parameter) * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(1 + 0.2 * noise(parameter))
        for name, buffer in result.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * noise(buffer).abs())
    return result
