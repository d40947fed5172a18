"""Training on labels from the current weights, for recovery after another step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from compress.context import StepContext
from compress.errors import IllegalChain, StepFailed
from compress.model import Model, forward
from compress.parts import Choices, one_of, positive, searched, whole_number
from compress.stateless_rng import seed_of
from compress.surgery import output_layers
from compress.system.amounts import plural
from compress.training import Training, TrainingHooks, fit, labels_loss
from compress.training.batch_norms import batch_norms


@dataclass(frozen=True, repr=False)
class Finetune(Training):
    """Train on with the task's loss; weights that a pruning step masked stay zero.

    With `freeze='backbone'` only the last layer learns (of a net with several heads, such as a
    distilled DeiT, that of each) for `frozen_epochs`, by default for all of them, and batch norms
    keep their statistics; then everything does, with a learning rate that rises and falls anew
    (Kumar et al. 2022: a new head that is trained along with the rest spoils features before it
    knows the classes).
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

    def check(self, context: StepContext) -> None:
        super().check(context)
        if self.freeze is None or context.enters is None:
            return
        with contextlib.suppress(StepFailed):  # the step says it, of the model that enters then
            _refuse_frozen_heads(context.enters.module, head_layers(context.enters))

    def compress(self, model: Model, context: StepContext) -> Model:
        loss, left = labels_loss(context), self.epochs
        plain = replace(self, freeze=None, frozen_epochs=None)
        if self.freeze is not None:
            first = replace(plain, epochs=self.frozen_epochs or self.epochs)
            with _head_alone(model) as names:
                # A module whose parts differ in mode is not recorded.
                hooks = TrainingHooks(resting=_norms_outside(model.module, names), traced=False)
                model = fit(model, context, first, loss, hooks)
            context.log.note(f"for {plural(first.epochs, 'epoch')} only {', '.join(names)} learnt")
            left -= first.epochs
            # With the same seed it would see the first epochs' orders and augmented views again.
            context = replace(context, seed=seed_of("thawed", context.seed))
        return fit(model, context, replace(plain, epochs=left), loss) if left else model


@contextlib.contextmanager
def _head_alone(model: Model) -> Iterator[list[str]]:
    """Freeze all weights but those of the heads' last layers for a while; yield their names."""
    names = head_layers(model)
    _refuse_frozen_heads(model.module, names)
    head = {id(parameter) for parameter in _parameters(model.module, names)}
    frozen = [
        parameter
        for parameter in model.module.parameters()
        if parameter.requires_grad and id(parameter) not in head
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield names
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _norms_outside(module: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of batch norms that are in none of some layers."""
    norms = {id(norm) for norm in batch_norms(module)}
    inside = {id(part) for name in names for part in module.get_submodule(name).modules()}
    return [name for name, part in module.named_modules() if id(part) in norms - inside]


def _parameters(module: nn.Module, layers: Sequence[str]) -> list[nn.Parameter]:
    return [one for name in layers for one in module.get_submodule(name).parameters()]


def _refuse_frozen_heads(module: nn.Module, names: Sequence[str]) -> None:
    """Raise IllegalChain if nothing of some layers may be trained."""
    if not any(parameter.requires_grad for parameter in _parameters(module, names)):
        raise IllegalChain(
            f"finetune: freeze='backbone' trains {', '.join(names)} alone, and that is frozen "
            f"(requires_grad is False): thaw it where the model is made, or leave freeze out"
        )


def head_layers(model: Model) -> list[str]:
    """Return the names of the layers that give the logits, auxiliary heads' included.

    Raises StepFailed if no layer does.
    """
    last = last_layer(model)
    width = len(model.module.get_parameter(f"{last}.weight"))
    found = output_layers(model.module, model.items(2))
    heads = [n for n in found if len(model.module.get_parameter(f"{n}.weight")) == width]
    return sorted({last, *heads})


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
