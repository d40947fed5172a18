"""Multi-head self-attention of plain layers: what `nn.MultiheadAttention` computes of one input.

That class keeps queries, keys and values in a parameter of its own and reads its output layer's
weight past that layer's forward, so neither can be replaced by other layers. Here both are layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """softmax(q kᵀ / √width of a head) v of one sequence (Vaswani et al. 2017, section 3.2).

    Called as `nn.MultiheadAttention` is: `query`, `key` and `value` are one tensor, (N, L, E), or
    (L, N, E) without `batch_first`. Returns outputs of that shape, and None for the attention's
    weights, which it does not keep. Raises ValueError for several tensors, masks, or one dimension
    less: it is put only in the place of attention that gets none of them.
    """

    # What torch's encoder layers ask for: no packed bias, so they call their layers one by one.
    in_proj_bias = None
    _qkv_same_embed_dim = True

    def __init__(
        self, embed_dim: int, num_heads: int, batch_first: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.batch_first, self.dropout = batch_first, dropout
        self.qkv: nn.Module = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj: nn.Module = nn.Linear(embed_dim, embed_dim)

    @classmethod
    def of(cls, packed: nn.MultiheadAttention) -> Attention:
        """Return what computes the same from the same weights, trained or frozen as they were."""
        weight = packed.in_proj_weight
        made = cls(packed.embed_dim, packed.num_heads, packed.batch_first, packed.dropout)
        made.qkv = _linear(weight, packed.in_proj_bias)
        made.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)
        return made.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if key is not query or value is not query or query.ndim != 3:
            raise ValueError("this attention is for one sequence with a batch dimension")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError("this attention takes no mask")
        x = query if self.batch_first else query.transpose(0, 1)
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind()
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device(weight.device):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made
