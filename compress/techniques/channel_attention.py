"""Attention layers whose code fixes how the width of their heads follows from that of the model.

`nn.MultiheadAttention`, torchvision's windowed attention and timm's blocks keep queries, keys and
values in one weight, (3 · heads · width of a head, width of the model), and their code takes both
widths to be equal. So the model's channels and those inside its heads are cut in the same
proportion, each by its own worth: the numbers must agree, not the indices. Where the width of a
head sets the scale of q kᵀ, the queries' weights make up for the change: attention keeps its scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEADS = ("num_heads", "n_heads")
PACKED = ("in_proj", "qkv.", "to_qkv.")
"""What a packed projection's parameters are called: this and `weight`, this and `bias`."""
WIDTHS = ("embed_dim", "kdim", "vdim", "attn_dim", "dim", "feat_dim")
"""Attributes that are the model's width where they are equal to it."""


@dataclass(frozen=True)
class PackedAttention:
    """An attention layer of one packed projection."""

    path: str
    heads: int
    width: int
    """Of the model, and of all heads together."""
    prefix: str
    """What the projection's parameters begin with."""
    sets_scale: bool
    """Whether its code is known to scale by the width of a head, other than by torch's default."""

    @property
    def weight(self) -> str:
        return f"{self.prefix}weight"


def packed_attentions(module: nn.Module) -> list[PackedAttention]:
    """Return the attention layers of a module whose inner width is that of the model."""
    parameters, found = dict(module.named_parameters()), []
    for path, part in module.named_modules():
        heads = next((n for key in HEADS if isinstance(n := getattr(part, key, None), int)), 0)
        for name in PACKED:
            inside = "in_proj_" if name == "in_proj" else name
            prefix = f"{path}.{inside}" if path else inside
            weight = parameters.get(f"{prefix}weight")
            if not heads or weight is None or weight.ndim != 2:
                continue
            width = weight.shape[1]
            if weight.shape[0] == 3 * width and width % heads == 0:
                stored = any(hasattr(part, key) for key in ("scale", "logit_scale", "scale_factor"))
                bias = hasattr(part, "relative_position_bias_table")
                found.append(PackedAttention(path, heads, width, prefix, bias and not stored))
                break
    return found


def set_widths(
    module: nn.Module, attentions: Iterable[PackedAttention], rescaled: Iterable[str]
) -> None:
    """Have attention layers whose projections were cut say and do what their shapes are."""
    parts, rescaled = dict(module.named_modules()), set(rescaled)
    for one in attentions:
        weight = module.get_parameter(one.weight)
        width = weight.shape[0] // 3
        if width == one.width:
            continue
        part, before, now = parts[one.path], one.width // one.heads, width // one.heads
        _replace_numbers(part, dict.fromkeys(WIDTHS, (one.width, width)))
        _replace_numbers(part, {"head_dim": (before, now)})
        for path, outer in parts.items():
            if not path or one.path.startswith(f"{path}."):
                _replace_numbers(outer, {"hidden_dim": (one.width, width)})
        if one.path in rescaled:
            _rescale(module, one, width, (now / before) ** 0.5)
            _replace_numbers(part, {"scale": (before**-0.5, now**-0.5)})


def _rescale(module: nn.Module, one: PackedAttention, width: int, factor: float) -> None:
    """Multiply the queries, the first third of what the projection makes."""
    tensors = dict(module.named_parameters())
    with torch.no_grad():
        for name in (one.weight, f"{one.prefix}bias"):
            tensor: Tensor | None = tensors.get(name)
            if tensor is not None:
                tensor[:width] *= factor


def _replace_numbers(part: nn.Module, changes: dict[str, tuple[float, float]]) -> None:
    for key, (before, now) in changes.items():
        value = vars(part).get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == before:
            setattr(part, key, now)
