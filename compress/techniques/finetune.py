"""Training on labels from the current weights, for recovery after another step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from compress.context import StepContext
from compress.errors import IllegalChain, StepFailed
from compress.model import Model, forward
from compress.parts import Choices, one_of, positive, searched, whole_number
from compress.training import Training, fit, labels_loss


@dataclass(frozen=True, repr=False)
class Finetune(Training):
    """Train on with the task's loss; weights that a pruning step masked stay zero.

    With `freeze='backbone'` only the last layer learns for `frozen_epochs`, by default for all of
    them; then everything does, with a learning rate that rises and falls anew (Kumar et al. 2022:
    a new head that is trained along with the rest spoils features before it knows the classes).
    """

    learning_rate: float = field(
        default=5e-4, metadata={**positive(), **searched(Choices((5e-4, 1e-3, 2e-4)))}
    )
    freeze: str | None = field(default=None, metadata=one_of("backbone"))
    frozen_epochs: int | None = field(default=None, metadata=whole_number())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen_epochs is not None and (
            self.freeze is None or self.frozen_epochs > self.epochs
        ):
            raise IllegalChain(
                f"finetune: frozen_epochs are those with freeze='backbone', of at most "
                f"{self.epochs} epochs, not {self.frozen_epochs}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"labels"}

    def compress(self, model: Model, context: StepContext) -> Model:
        loss, left = labels_loss(context), self.epochs
        plain = replace(self, freeze=None, frozen_epochs=None)
        if self.freeze is not None:
            first = replace(plain, epochs=self.frozen_epochs or self.epochs)
            with _head_alone(model) as names:
                model = fit(model, context, first, loss)
            context.log.note(f"for {first.epochs} epochs only {', '.join(names)} was trained")
            left -= first.epochs
        return fit(model, context, replace(plain, epochs=left), loss) if left else model


@contextlib.contextmanager
def _head_alone(model: Model) -> Iterator[list[str]]:
    """Freeze all weights but those of the last layer for a while; yield the layer's name."""
    name = last_layer(model)
    head = {id(parameter) for parameter in model.module.get_submodule(name).parameters()}
    frozen = [
        parameter
        for parameter in model.module.parameters()
        if parameter.requires_grad and id(parameter) not in head
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield [name]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def last_layer(model: Model) -> str:
    """Return the name of the layer with weights that runs last and has the logits' width.

    Raises StepFailed if no layer has that.
    """
    ran: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in model.module.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            width = forward(model.module, model.items(2)).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    layers: dict[str, Any] = dict(model.module.named_modules())
    for name in reversed(ran):
        weight = getattr(layers[name], "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and len(weight) == width:
            return name
    raise StepFailed("finetune: no layer gives the logits, so there is no backbone to freeze")
