"""Attention layers: their heads, and what their code takes the width of heads from.

A layer with a number of heads may lose the same channels of each head, so that heads become
narrower, or whole heads. Where the width of a head sets the scale of q kᵀ, the weights of the
queries make up for a change of it: attention keeps its scale.

Some code takes the width of all heads together for that of the model (`nn.MultiheadAttention`,
torchvision's windowed attention, EVA, XCiT). There both are cut in the same proportion, each by its
own worth: the numbers must agree, not the indices (`channel_links`). `nn.MultiheadAttention`
becomes plain layers beforehand where that is possible: then neither depends on the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.lowrank.unpack import packed_again, renamed, unpacked
from compress.model import Model

HEADS = ("num_heads", "n_heads", "num_attention_heads", "nhead", "n_head", "num_head", "nheads")
"""What a number of heads is called."""
VAGUE = ("heads", "h")
"""What it is called in layers with a projection to queries; elsewhere it may be anything."""
PACKED = ("in_proj_", "qkv.", "to_qkv.", "qkv_proj.", "in_proj.", "c_attn.", "query_key_value.")
"""What the parameters of a projection to queries, keys and values begin with."""
QUERIES = ("q.", "q_proj.", "to_q.", "query.", "wq.", "q_lin.", "query_proj.")
"""What those of a projection to queries alone begin with."""
MODEL_WIDTHS = ("embed_dim", "kdim", "vdim", "dim", "feat_dim")
"""Attributes that are the model's width where they are equal to it."""


@dataclass(frozen=True)
class AttentionLayer:
    """A layer with heads."""

    path: str
    heads: int
    kind: type[nn.Module]
    queries: str = ""
    """What the parameters that make its queries begin with; '' where they are not known."""
    bias: str = ""
    """The parameter that is added to its queries, where there is one."""
    parts: int = 1
    """3 where these make keys and values as well, behind the queries."""
    model_width: int = 0
    """The width of what enters that projection."""
    width: int = 0
    """The width of all heads together."""
    sets_scale: bool = False
    """Whether its code is known to scale by the width of a head, other than by torch's default."""

    @property
    def weight(self) -> str:
        return f"{self.queries}weight"


def attention_layers(module: nn.Module) -> list[AttentionLayer]:
    """Return the layers of a module that have heads."""
    parameters = dict(module.named_parameters())
    found = []
    for path, part in module.named_modules():
        if (heads := heads_of(part)) > 0:
            found.append(_described(path, part, heads, parameters))
    return found


def heads_of(part: nn.Module) -> int:
    """Return how many heads a layer says that it has, 0 if it says nothing of heads."""
    names = heads_names(part)
    return int(vars(part)[names[0]]) if names else 0


def heads_names(part: nn.Module) -> list[str]:
    """Return what a layer's number of heads is called in it."""
    found = [key for key in (*HEADS, *VAGUE) if type(vars(part).get(key)) is int]
    if set(found) <= {*VAGUE}:
        own = [f"{name}." for name, _ in part.named_children()]
        found = found if {*own} & {*PACKED, *QUERIES} else []
    return found


def _described(
    path: str, part: nn.Module, heads: int, parameters: dict[str, nn.Parameter]
) -> AttentionLayer:
    stored = any(hasattr(part, key) for key in ("scale", "logit_scale", "scale_factor"))
    sets_scale = hasattr(part, "relative_position_bias_table") and not stored
    for parts, names in ((3, PACKED), (1, QUERIES)):
        for name in names:
            prefix = f"{path}.{name}" if path else name
            weight = parameters.get(f"{prefix}weight")
            # BEiT and EVA keep biases of queries and values of their own.
            biases = [f"{prefix}bias", f"{path}.q_bias" if path else "q_bias"]
            bias = next((key for key in biases if key in parameters), "")
            if weight is not None and weight.ndim == 2 and len(weight) % (parts * heads) == 0:
                made, read = weight.shape
                return AttentionLayer(
                    path, heads, type(part), prefix, bias, parts, read, made // parts, sets_scale
                )
    return AttentionLayer(path, heads, type(part))


def set_widths(
    module: nn.Module, attentions: Iterable[AttentionLayer], rescaled: Iterable[str]
) -> None:
    """Have attention layers whose projections were cut say and do what their shapes are."""
    parts, rescaled = dict(module.named_modules()), set(rescaled)
    for one in attentions:
        if not one.queries:
            continue
        made, model_width = module.get_parameter(one.weight).shape
        part, width = parts[one.path], made // one.parts
        before, now = one.width // one.heads, width // max(heads_of(part), 1)
        _replace_numbers(part, dict.fromkeys(MODEL_WIDTHS, (one.model_width, model_width)))
        _replace_numbers(part, {"attn_dim": (one.width, width), "head_dim": (before, now)})
        for path, outer in parts.items():
            if not path or one.path.startswith(f"{path}."):
                _replace_numbers(outer, {"hidden_dim": (one.model_width, model_width)})
        if one.path in rescaled and now != before:
            _rescale(module, one, width, (now / before) ** 0.5)
            _replace_numbers(part, {"scale": (before**-0.5, now**-0.5)})


def _rescale(module: nn.Module, one: AttentionLayer, width: int, factor: float) -> None:
    """Multiply the queries, the first of what the projection makes."""
    tensors = dict(module.named_parameters())
    with torch.no_grad():
        for name in (one.weight, one.bias):
            tensor: Tensor | None = tensors.get(name)
            if tensor is not None:
                tensor[:width] *= factor


def _replace_numbers(part: nn.Module, changes: dict[str, tuple[float, float]]) -> None:
    for key, (before, now) in changes.items():
        value = vars(part).get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == before:
            setattr(part, key, now)


def with_plain_attention(model: Model) -> tuple[Model, dict[str, nn.Module]]:
    """Return a model with `Attention` for each `nn.MultiheadAttention` that it can stand for, and
    what was there before, by path."""
    module, packed = unpacked(model.module, model.items())
    return replace(model, module=module, sparse=renamed(model.sparse, packed)), packed


def packed_where_whole(
    result: Model, plain: Model, packed: Mapping[str, nn.Module], sparse: Collection[str]
) -> Model:
    """Return a pruned model with `nn.MultiheadAttention` put back where its layers are as before.

    `plain` is the model before the cut, `sparse` are the masked weights as they were called then.
    """
    before = dict(plain.module.named_parameters())
    cut = {
        name.rpartition(".")[0]
        for name, one in result.module.named_parameters()
        if not torch.equal(one, before[name])
    }
    module = result.copy().module
    stays = packed_again(module, packed, cut)
    return replace(result, module=module, sparse=renamed(sparse, stays))
