"""Several models as one: the mean of their logits or of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import IllegalChain
from compress.find_heads import Judge, settle_heads
from compress.heads import main_output
from compress.model import INSTANCE, Blueprint, Model, on_device_of

AVERAGES = ("probabilities", "logits")
MOST_MEMBERS = 64


def averaged(outputs: Sequence[Tensor], average: str, weights: Sequence[float] = ()) -> Tensor:
    """Return the logits, (N, classes), of an ensemble whose members gave `outputs`.

    Of probabilities, the logarithm of the weighted mean is returned, whose softmax is that mean.
    The weights are scaled to a sum of one; without any, all members count alike.
    """
    if len(outputs) == 1:
        return outputs[0]
    shares = [weight / sum(weights) for weight in weights] or [1 / len(outputs)] * len(outputs)
    pairs = list(zip(outputs, shares, strict=True))
    if average == "logits":
        return torch.stack([output * share for output, share in pairs]).sum(0)
    logs = [F.log_softmax(output, dim=1) + math.log(share) for output, share in pairs]
    return torch.stack(logs).logsumexp(0)


class Ensemble(nn.Module):
    """Members that take the same inputs, and the average of their outputs."""

    def __init__(self, members: Sequence[nn.Module], average: str = "probabilities") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average = average

    def extra_repr(self) -> str:
        return f"average={self.average!r}"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs to logits (N, classes)."""
        return averaged([main_output(m, m(*inputs)) for m in self.members], self.average)


def settle(model: Model, shape: Sequence[int], judge: Judge | None = None) -> Tensor:
    """Decide where a model's heads are, and those of every member of an ensemble.

    Returns the logits of one item. Raises UserError where nothing decides (`compress.heads`).
    """
    inputs = on_device_of(model.module, model.items())
    for part in model.module.modules():
        for member in part.members if isinstance(part, Ensemble) else ():
            settle_heads(member, inputs, shape, judge)
    return settle_heads(model.module, inputs, shape, judge)


def together(models: Sequence[Model]) -> Model:
    """Return the ensemble, by the mean of probabilities, of models that were built by one factory.

    Raises IllegalChain if they were not.
    """
    first = models[0]
    blueprints = [model.blueprint for model in models]
    if any(blueprint != first.blueprint for blueprint in blueprints):
        raise IllegalChain("an ensemble has members of one factory, and these have several")
    blueprint = None
    if first.blueprint is not None and first.blueprint.factory != INSTANCE:
        name = f"ensemble(of={first.blueprint.factory!r}, members={len(models)})"
        blueprint = Blueprint(name, first.blueprint.arguments)
    sparse = {f"members.{i}.{name}" for i, model in enumerate(models) for name in model.sparse}
    return Model(
        Ensemble([model.module for model in models]).eval(),
        first.probe,
        frozenset(sparse),
        blueprint=blueprint,
    )
