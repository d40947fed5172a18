"""The training loop that every technique shares, and evaluation on a split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compress.compressor import (
    Compressor,
    Workbench,
    is_number,
    require,
    require_choice,
    require_count,
)
from compress.errors import StepFailed
from compress.model import Model, main_output
from compress.progress import bar
from compress.task import Split, Task, Tensors, prepared_batches

Loss = Callable[[Tensor, Tensor, Tensors], Tensor]
"""(outputs, targets, inputs) -> scalar."""

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, repr=False)
class Training(Compressor):
    """The settings that all steps that train share.

    The learning rate rises linearly over the first fifth of the steps and falls along a cosine
    to zero (after the one-cycle policy, Smith and Topin 2018); `learning_rate` is its peak.
    Weight decay spares norms and biases. `keep='best'` keeps the epoch that is best on the
    validation split.
    """

    always_shown = ("epochs",)

    epochs: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 128
    keep: str = "last"

    def __post_init__(self) -> None:
        require_count(self, "epochs")
        require_count(self, "batch_size", least=2)
        require_choice(self, "optimizer", OPTIMIZERS)
        require_choice(self, "keep", ("last", "best"))
        rate, decay = self.learning_rate, self.weight_decay
        require(is_number(rate) and rate > 0, self, f"learning_rate must be positive, not {rate!r}")
        require(is_number(decay) and decay >= 0, self, f"weight_decay must be >= 0, not {decay!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"train", "validation"} if self.keep == "best" else {"train"})


def fit(model: Model, bench: Workbench, settings: Training, loss: Loss) -> Model:
    """Train the model's module in place and return it in eval mode, on the CPU.

    Weights in `model.sparse` that are zero stay zero. Raises StepFailed when the loss is no
    longer finite.
    """
    if bench.train is None:
        raise StepFailed("there is no training data")
    module = to_device(model.module, bench)
    masks = {name: tensor != 0 for name, tensor in _sparse_weights(module, model)}
    optimizer = _optimizer(module, settings)
    batches = _batches_per_epoch(len(bench.train), settings.batch_size)
    total_steps = settings.epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle((step + 0.5) / total_steps)
    )
    stepper = Stepper(module, optimizer, loss, bench)
    generator = torch.Generator().manual_seed(bench.seed)
    best: tuple[float, dict[str, Tensor]] | None = None
    started, seen = time.perf_counter(), 0
    with _bar(bench, settings, batches) as shown:
        for epoch in range(1, settings.epochs + 1):
            module.train()
            total, count = torch.zeros((), device=bench.device), 0
            for raw, targets in bench.train.batches(settings.batch_size, generator):
                if len(targets) < 2:
                    continue  # batch norm has no variance over one item
                inputs = _prepare(bench, module, raw, generator)
                value = stepper.step(inputs, targets.to(bench.device))
                schedule.step()
                _apply(masks, module)
                total, count = total + value * len(targets), count + len(targets)
                shown.update()
            seen += count
            mean = float(total) / max(count, 1)
            if not math.isfinite(mean):
                raise StepFailed(
                    f"the loss became {mean} in epoch {epoch}: try a smaller learning_rate than "
                    f"{settings.learning_rate}"
                )
            shown.set_postfix(epoch=epoch, loss=f"{mean:.4f}")
            row: dict[str, Any] = {"epoch": epoch, "loss": mean}
            if settings.keep == "best" and bench.validation is not None:
                score = accuracy(module, bench.task, bench.validation, bench.device)
                row["validation_accuracy"] = score
                if best is None or score > best[0]:
                    state = {key: value.clone() for key, value in module.state_dict().items()}
                    best = (score, state)
            bench.journal.row("epoch", **row)
    if best is not None:
        module.load_state_dict(best[1])
    seconds = time.perf_counter() - started
    told = {"samples": seen, "seconds": round(seconds, 3), "precision": bench.precision}
    bench.journal.row("fit", **told, **stepper.about(settings.batch_size))
    module = module.to("cpu").to(memory_format=torch.contiguous_format).eval()
    return replace(model, module=module, hints={})


def one_cycle(progress: float, rise: float = 0.2) -> float:
    """Return the share of the peak learning rate at a fraction of the training, in [0, 1]."""
    if progress < rise:
        return progress / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - rise) / (1 - rise))))


def accuracy(
    module: nn.Module, task: Task, split: Split, device: torch.device | str = "cpu"
) -> float:
    """Return the fraction of a split's items that the module gets right."""
    module.eval()
    right = 0
    with torch.no_grad():
        for inputs, targets in prepared_batches(task, split, 256, device):
            outputs = main_output(module(*inputs)).cpu()
            right += int(task.correct(outputs, targets).sum())
    return right / len(split)


def has_convolutions(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in module.modules())


def place_inputs(inputs: Tensors, channels_last: bool) -> Tensors:
    """Give image batches the memory format that convolutions are fastest in."""
    if not channels_last:
        return inputs
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for tensor in inputs
    )


def autocast(bench: Workbench) -> torch.autocast:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.precision == "bfloat16")


def to_device(module: nn.Module, bench: Workbench) -> nn.Module:
    """Move a module to the workbench's device, in the memory format its layers are fastest in."""
    if has_convolutions(module):
        return module.to(bench.device).to(memory_format=torch.channels_last)
    return module.to(bench.device)


def _prepare(
    bench: Workbench, module: nn.Module, raw: Tensors, generator: torch.Generator
) -> Tensors:
    inputs = bench.task.prepare(raw, bench.device, generator)
    return place_inputs(inputs, has_convolutions(module))


OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")
"""What torch, CUDA and oneDNN say in errors of no type of their own."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


class Stepper:
    """Steps of an optimizer, in parts where a batch is more than memory holds.

    When memory runs out the batch is halved for good, and the gradients of its parts, each
    weighted by its share of the items, add up to that of the whole. Batch norm sees the parts
    one by one, so its statistics are those of smaller batches.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, bench: Workbench
    ) -> None:
        self.module, self.optimizer, self.loss, self.bench = module, optimizer, loss, bench
        self.parts = 1

    def step(self, inputs: Tensors, targets: Tensor) -> Tensor:
        """Take one step on a batch, and return its mean loss, detached."""
        while True:
            try:
                return self._step(inputs, targets)
            except (RuntimeError, MemoryError) as error:
                # Batch norm has no variance over one item, so a part has two at least.
                if not ran_out_of_memory(error) or 4 * self.parts > len(targets):
                    raise
                said = str(error).strip().partition("\n")[0]
            self.optimizer.zero_grad(set_to_none=True)
            if self.bench.device.type == "cuda":
                torch.cuda.empty_cache()
            self.parts *= 2
            self.bench.journal.row("memory", parts=self.parts, error=said)

    def about(self, batch_size: int) -> dict[str, int]:
        """Return what the record says of the batches, and note it if they were not whole."""
        if self.parts == 1:
            return {}
        self.bench.journal.note(
            f"memory ran out in training: batches of {batch_size} went through in {self.parts} "
            f"parts, whose gradients were added up"
        )
        return {"micro_batch": -(-batch_size // self.parts)}

    def _step(self, inputs: Tensors, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        count = len(targets)
        total = torch.zeros((), device=targets.device)
        parts = max(1, min(self.parts, count // 2))
        for index in range(parts):
            begin, end = index * count // parts, (index + 1) * count // parts
            some = tuple(tensor[begin:end] for tensor in inputs)
            with autocast(self.bench):
                outputs = main_output(self.module(*some))
            # The loss is computed in float32: bfloat16 keeps three digits only.
            share = (end - begin) / count
            value = self.loss(outputs.float(), targets[begin:end], some) * share
            value.backward()
            total = total + value.detach()
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimizer.step()
        return total


def _sparse_weights(module: nn.Module, model: Model) -> list[tuple[str, Tensor]]:
    return [(k, v.detach()) for k, v in module.named_parameters() if k in model.sparse]


def _apply(masks: dict[str, Tensor], module: nn.Module) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)


def _optimizer(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else spared).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, settings.learning_rate)


def _batches_per_epoch(items: int, batch_size: int) -> int:
    full, rest = divmod(items, batch_size)
    if full + (rest > 1) == 0:
        raise StepFailed(f"{items} training item(s) are too few to train on")
    return full + (rest > 1)


def _bar(bench: Workbench, settings: Training, batches: int) -> tqdm[Any]:
    total = settings.epochs * batches
    return bar(bench.progress, total=total, desc=settings.name(), unit="batch", leave=False)
