"""Training on labels from fresh weights: the baseline's own, or a student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.compressor import Compressor, seed_everything
from compress.context import StepContext
from compress.errors import IllegalChain
from compress.model import INSTANCE, Model
from compress.parts import a_name
from compress.stateless_rng import seed_of
from compress.surgery import replace_layer
from compress.techniques.untrained import Untrained
from compress.training import Training, fit, labels_loss


@dataclass(frozen=True, repr=False)
class Train(Training):
    """Train from fresh weights with the task's loss.

    Without `student`, the architecture of the model that enters; with it, the named student,
    which is the control of a distilled one.
    """

    student: str | None = field(default=None, metadata=a_name())

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"labels"}

    @property
    def students(self) -> frozenset[str]:
        return frozenset() if self.student is None else frozenset({self.student})

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        return () if self.student is None else (Untrained(student=self.student),)

    def learner(self, context: StepContext) -> Model | None:
        return context.enters if self.student is None else context.student(self.student)

    def compress(self, model: Model, context: StepContext) -> Model:
        return fit(fresh_model(self.student, model, context), context, self, labels_loss(context))


def fresh_model(student: str | None, model: Model, context: StepContext) -> Model:
    """Build the student, or the architecture of `model` again, with fresh weights."""
    if student is not None:
        return context.student(student)
    if model.blueprint is not None and model.blueprint.factory != INSTANCE:
        return context.student(model.blueprint.factory)
    reset(model.module)
    return replace(model, sparse=frozenset())


def reborn(model: Model, context: StepContext) -> Model:
    """Return an untrained model of the present architecture of `model`, cut by steps or not.

    Its weights are not those that `model` began with, even where both have the context's seed.
    """
    seed_everything(seed_of("born again", context.seed))
    fresh: dict[str, Tensor] = {}
    if model.blueprint is not None and model.blueprint.factory != INSTANCE:
        built = context.student(model.blueprint.factory)
        layers = dict(built.module.named_modules())
        for path, layer in model.module.named_modules():
            # Carving has replaced blocks by identities.
            if isinstance(layer, nn.Identity) and path in layers:
                replace_layer(built.module, path, type(layer)())
        if _shapes(built) == _shapes(model):
            return built
        fresh = dict(built.module.named_parameters())
        context.log.note(
            "the student has the shapes that steps before it made, so its layers have their own "
            "fresh weights, not those that the model's factory gives them"
        )
    student = model.copy()
    reset(student.module, fresh)
    return replace(student, sparse=frozenset())


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.module.state_dict().items()}


def reset(module: nn.Module, fresh: Mapping[str, Tensor] | None = None) -> None:
    """Give every layer of a module instance fresh weights by its own `reset_parameters`.

    Parameters of layers without such a method are taken from `fresh`, by name, the first channels
    of those that have more. Raises IllegalChain if they are missing or smaller. Frozen weights keep
    their values, since no training could restore them, and so do the buffers of a layer that is
    frozen as a whole.
    """
    frozen = [(tensor, tensor.detach().clone()) for tensor in _frozen_tensors(module)]
    for path, layer in module.named_modules():
        reinitialize = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
        if callable(reinitialize):
            reinitialize()
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            value = (fresh or {}).get(f"{path}.{name}" if path else name)
            if value is not None and value.ndim == parameter.ndim:
                # Of a layer that was cut, as many as are left: fresh channels are all alike.
                value = value[tuple(map(slice, parameter.shape))]
            if value is None or value.shape != parameter.shape:
                raise IllegalChain(
                    f"fresh weights are needed, and layer {path or 'at the top'!r} "
                    f"({type(layer).__name__}) has no reset_parameters(): give the model as "
                    f"'file.py:factory', or train on with finetune(...) or distill(...)"
                )
            with torch.no_grad():
                parameter.copy_(value)
    with torch.no_grad():
        for tensor, value in frozen:
            tensor.copy_(value)


def _frozen_tensors(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        parameters = list(layer.parameters(recurse=False))
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        yield from frozen
        if frozen and len(frozen) == len(parameters):
            yield from layer.buffers(recurse=False)
