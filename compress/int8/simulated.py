"""Training under the noise of int8, so that `quantize` loses less afterwards.

In every forward pass each product reads its input rounded to 256 levels and its weight rounded per
output channel; gradients pass the rounding as if it were not there (Jacob et al. 2018, section 3;
Bengio et al. 2013 for the straight-through estimator). Ranges are those that `quantize` would
choose, from calibration items, anew before every epoch. A batch norm after a convolution scales
output channels, each of which has a weight scale of its own: folding it first would round alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.deploy.observe import Observed
from compress.deploy.saturation import PAIR
from compress.int8.ranges import LEVELS, Range, best
from compress.int8.settings import Settings
from compress.int8.weights import BITS, most
from compress.model import forward
from compress.tasks.base import Tensors

PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass
class _Product:
    """What stands around a layer: it rounds the input and the weight of each call."""

    settings: Settings
    bits: int
    range: Range | None = None
    observed: Observed | None = None
    """Where this is set, calls are looked at and nothing is rounded."""
    weights: list[Tensor] = field(default_factory=list)

    def before(
        self, module: nn.Module, inputs: Tensors, named: dict[str, Tensor]
    ) -> tuple[Tensors, dict[str, Tensor]] | None:
        given = inputs[0] if inputs else named["input"]
        if self.observed is not None:
            self.observed.add(given.detach().float().cpu().numpy())
            return None
        weight = module._parameters["weight"]
        assert weight is not None
        self.weights.append(weight)
        if self.range is None:
            return None
        module._parameters["weight"] = self.rounded(weight)  # type: ignore[assignment]
        values = torch.fake_quantize_per_tensor_affine(
            given.float(), self.range.scale, self.range.zero, 0, LEVELS
        )
        return (values.to(given.dtype),), {}

    def after(self, module: nn.Module, inputs: Tensors, output: Any) -> None:
        if self.weights:
            module._parameters["weight"] = self.weights.pop()  # type: ignore[assignment]

    def rounded(self, weight: Tensor) -> Tensor:
        scale = scales(weight.detach(), self.settings.portable, self.bits)
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        end = most(self.bits)
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


def simulated(layer: nn.Module) -> bool:
    """Whether a layer is a product of its input and a weight of its own, and nothing else.

    Layers that compute their weight first (weight norm, standardized convolutions) are not.
    """
    plain = any(type(layer).forward is kind.forward for kind in PRODUCTS)
    return plain and isinstance(layer._parameters.get("weight"), nn.Parameter)


class Simulation:
    """Rounds the products of a module in every forward pass, until `remove`.

    `left` are layers that stay float. Layers that no calibration item reaches by a call of their
    own, such as those inside `nn.MultiheadAttention`, do as well. `bits` are those of layers where
    the settings have patterns.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        calibration: Iterable[Tensors],
        left: Collection[str] = (),
        bits: Mapping[str, int] | None = None,
    ) -> None:
        self.module, self.settings, self.calibration = module, settings, calibration
        self.products: dict[str, _Product] = {}
        self.handles: list[RemovableHandle] = []
        for path, layer in module.named_modules():
            if path in left or not simulated(layer):
                continue
            usual = settings.bits if isinstance(settings.bits, int) else BITS
            product = self.products[path] = _Product(settings, (bits or {}).get(path, usual))
            self.handles += [
                layer.register_forward_pre_hook(product.before, with_kwargs=True),
                layer.register_forward_hook(product.after, always_call=True),
            ]

    @property
    def untouched(self) -> list[str]:
        """The layers with a weight matrix that stay float though nobody asked for that."""
        return [
            path
            for path, layer in self.module.named_modules()
            if isinstance(layer, PRODUCTS) and not simulated(layer)
        ] + [path for path, product in self.products.items() if product.range is None]

    def observe(self) -> None:
        """Choose the ranges anew, in eval mode; the module is in training mode afterwards."""
        for product in self.products.values():
            product.observed = Observed()
        device = next(self.module.parameters()).device
        try:
            self.module.eval()
            for batch in self.calibration:
                forward(self.module, tuple(tensor.to(device) for tensor in batch))
        finally:
            self.module.train()
            for product in self.products.values():
                seen, product.observed = product.observed, None
                if seen is not None and seen.counts.any():
                    product.range = best(seen, self.settings.method)

    def settle(self) -> dict[str, Any]:
        """Round the weights for good, those that may be trained; return the hint for `quantize`.

        Ranges are chosen once more, for the weights as they are. The module is in eval mode
        afterwards.
        """
        self.observe()
        self.module.eval()
        found = {}
        with torch.no_grad():
            for path, product in self.products.items():
                weight = self.module.get_parameter(f"{path}.weight")
                if product.range is not None and weight.requires_grad:
                    weight.copy_(product.rounded(weight))
                    found[path] = product.range
        return self.settings.hint(found)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
