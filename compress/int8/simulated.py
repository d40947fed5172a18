"""Training under the noise of int8, so that `quantize` loses less afterwards.

In every forward pass each product reads its input rounded to 256 levels and its weight rounded per
output channel; gradients pass the rounding as if it were not there (Jacob et al. 2018, section 3;
Bengio et al. 2013 for the straight-through estimator). Ranges are those that `quantize` would
choose, from calibration items, anew before every epoch. A batch norm after a convolution scales
output channels, each of which has a weight scale of its own: folding it first would round alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.deploy.observe import Observed
from compress.deploy.saturation import PAIR
from compress.int8.lower import Settings
from compress.int8.ranges import LEVELS, Range, best
from compress.int8.weights import most
from compress.model import forward
from compress.tasks.base import Tensors

PRODUCTS: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: ("Conv",),
    nn.Conv2d: ("Conv",),
    nn.Conv3d: ("Conv",),
    nn.Linear: ("Gemm", "MatMul"),
}
"""Layers whose products are rounded, and the operators that they become."""
HINT = "int8"
"""The name of the trained ranges among a model's hints."""


@dataclass
class _Product:
    """What stands around a layer: it rounds the input and the weight of each call."""

    settings: Settings
    range: Range | None = None
    observed: Observed | None = None
    """Where this is set, calls are looked at and nothing is rounded."""
    weights: list[Tensor] = field(default_factory=list)

    def before(self, module: nn.Module, inputs: Tensors) -> Tensors | None:
        if self.observed is not None:
            self.observed.add(inputs[0].detach().float().cpu().numpy())
            return None
        weight = module._parameters["weight"]
        assert weight is not None
        self.weights.append(weight)
        if self.range is None:
            return None
        module._parameters["weight"] = self.rounded(weight)  # type: ignore[assignment]
        values = torch.fake_quantize_per_tensor_affine(
            inputs[0].float(), self.range.scale, self.range.zero, 0, LEVELS
        )
        return (values.to(inputs[0].dtype), *inputs[1:])

    def after(self, module: nn.Module, inputs: Tensors, output: Any) -> None:
        if self.weights:
            module._parameters["weight"] = self.weights.pop()  # type: ignore[assignment]

    def rounded(self, weight: Tensor) -> Tensor:
        scale = scales(weight.detach(), self.settings.portable, self.settings.bits)
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        end = most(self.settings.bits)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(
            weight.float(), scale, zeros, 0, -end, end
        )
        return rounded.to(weight.dtype)


def scales(weight: Tensor, portable: bool, bits: int) -> Tensor:
    """Return the scale of each output channel, as `weights.scales` has it."""
    rows = weight.reshape(len(weight), -1)
    found = rows.abs().amax(1) / most(bits)
    if portable:
        orders = [rows]
        if weight.ndim > 2:
            orders.append(weight.movedim(1, -1).reshape(len(weight), -1))
        for order in orders:
            for part in (order.clamp_min(0), (-order).clamp_min(0)):
                sums = part[:, :-1] + part[:, 1:] if part.shape[1] > 1 else part
                found = torch.maximum(found, sums.amax(1) / (PAIR - 1))
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(found >= tiny, found, torch.ones_like(found)).float()


class Simulation:
    """Rounds the products of a module in every forward pass, until `remove`.

    `exclude` in the settings names layers or operators that stay float. Layers that no calibration
    item reaches by a call of their own, such as those inside `nn.MultiheadAttention`, do as well.
    """

    def __init__(
        self, module: nn.Module, settings: Settings, calibration: Iterable[Tensors]
    ) -> None:
        self.module, self.settings, self.calibration = module, settings, calibration
        self.products: dict[str, _Product] = {}
        self.handles: list[RemovableHandle] = []
        for path, layer in module.named_modules():
            kinds = next((PRODUCTS[kind] for kind in PRODUCTS if isinstance(layer, kind)), ())
            names = (path, *kinds)
            if not kinds or any(fnmatchcase(n, p) for n in names for p in settings.exclude):
                continue
            product = self.products[path] = _Product(settings)
            self.handles += [
                layer.register_forward_pre_hook(product.before),
                layer.register_forward_hook(product.after, always_call=True),
            ]

    def observe(self) -> None:
        """Choose the ranges anew, in eval mode; the module is in training mode afterwards."""
        for product in self.products.values():
            product.observed = Observed()
        try:
            self.module.eval()
            with torch.no_grad():
                for batch in self.calibration:
                    forward(self.module, batch)
        finally:
            self.module.train()
            for product in self.products.values():
                seen, product.observed = product.observed, None
                if seen is not None and seen.counts.any():
                    product.range = best(seen, self.settings.method)

    def settle(self) -> dict[str, Any]:
        """Round the weights for good, and return the ranges: what `quantize` needs to go on."""
        found = {}
        with torch.no_grad():
            for path, product in self.products.items():
                if product.range is not None:
                    weight = self.module.get_parameter(f"{path}.weight")
                    weight.copy_(product.rounded(weight))
                    found[path] = [product.range.scale, product.range.zero]
        return {HINT: found}

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def trained(hints: Mapping[str, Any]) -> dict[str, Range]:
    """Return the ranges that a training settled on, by the layer that reads the value."""
    return {
        path: Range(scale, zero, "trained") for path, (scale, zero) in hints.get(HINT, {}).items()
    }
