"""The training loop that every technique shares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.context import StepContext
from compress.errors import StepFailed
from compress.heads import has_auxiliary, heads_of
from compress.model import Model, became_nonfinite, weights_hash
from compress.ranks import ranks
from compress.system.progress import Stage, showing, stage
from compress.tasks.base import Split
from compress.training.batch_loader import Batch, BatchLoader, Reader, resident
from compress.training.checkpoint import Checkpoints, TrainingState
from compress.training.evaluate import evaluate, some_of
from compress.training.execution_mode import ExecutionMode, Run, autotune, runner, to_device
from compress.training.settings import Training, one_cycle, refuse_frozen
from compress.training.stepper import AUXILIARY, LabelWeight, Loss, Stepper
from compress.training.synchronized import has_batch_norms

CURVE_ITEMS = 1000
"""Items of the validation split behind the curve, where it decides nothing."""
FEW_STEPS = 10
"""Steps of an optimizer in all, below which the log says that they are few."""
WORTH_KEEPING = 2.0
"""Seconds of training after a checkpoint until the next one is written."""
CHECK_EVERY_ON_GPU = 50
"""Steps on a GPU after which it is checked whether the loss is still finite."""


@dataclass
class TrainingHooks:
    """What a technique changes in the loop: other data, further weights, callbacks.

    `split` takes the place of the training data; `extra` is trained along and thrown away;
    `view` maps an epoch (from 0) to the augmented view that it shows; `before` and `after` are
    called with every epoch's view; `readers`, after `before`, returns what else its batches bring
    along; `traced` is False where the module must not be compiled or recorded; `resting` are the
    names of layers that work as in eval mode.
    """

    split: Split | None = None
    extra: nn.Module | None = None
    view: Callable[[int], int] = lambda epoch: epoch
    before: Callable[[int], None] = lambda view: None
    after: Callable[[int], None] = lambda view: None
    readers: Callable[[], Sequence[Reader]] = lambda: ()
    traced: bool = True
    resting: Collection[str] = ()
    labelled: bool = True
    """Whether the split's targets mean anything."""
    label_weight: LabelWeight = lambda progress: 1.0
    """The weight of the labels' loss within the loss: auxiliary heads learn from labels alone."""
    about: Mapping[str, Any] | None = None
    """What else the loss depends on, for the checkpoints' keys."""
    nan_reason: Callable[[], str] = str
    """Returns why a loss is not finite, if not because of the training itself; else ''."""


def labels_loss(context: StepContext) -> Loss:
    """Return the task's own loss, against the targets of the split."""
    return lambda outputs, batch: context.task.loss(outputs, batch.targets)


def fit(
    model: Model,
    context: StepContext,
    settings: Training,
    loss: Loss,
    hooks: TrainingHooks | None = None,
) -> Model:
    """Train the model's module in place and return it in eval mode, on the CPU.

    Weights in `model.sparse` that are zero stay zero. On a cache the state is kept after every
    epoch, and a training that was stopped goes on from there exactly. If the loss is no longer
    finite, the state after the last good epoch is kept and the log says so; raises
    StepFailed if there is none, and IllegalChain if all weights are frozen.
    """
    refuse_frozen(model.module, settings)
    return _Fit(model, context, settings, loss, hooks or TrainingHooks()).run()


class _Fit:
    """One training."""

    def __init__(
        self,
        model: Model,
        context: StepContext,
        settings: Training,
        loss: Loss,
        hooks: TrainingHooks,
    ) -> None:
        split = hooks.split if hooks.split is not None else context.train
        assert split is not None, "run() has checked needs"
        heads = heads_of(model.module)
        if heads is not None and heads.untrainable:
            raise StepFailed(heads.untrainable)
        self.model, self.context, self.settings, self.hooks = model, context, settings, hooks
        self.loader = BatchLoader(
            split, context.task, context.device, context.seed, settings.batch_size
        )
        least = 2 * ranks().count  # a last batch may have fewer
        if settings.batch_size < least:
            raise StepFailed(
                f"batch_size is {settings.batch_size}, and {ranks().count} processes share each "
                f"batch: give at least {least}, or fewer GPUs (CUDA_VISIBLE_DEVICES)"
            )
        if len(self.loader) == 0:
            raise StepFailed(f"{len(split)} training item(s) are too few to train on")
        self.total_steps = settings.epochs * len(self.loader)
        self.first_row = len(context.log.rows)
        question = {
            "scope": context.scope,
            "settings": repr(settings),
            "seed": context.seed,
            "weights": weights_hash(model.module),
            "about": dict(hooks.about or {}),
        }
        # Without a scope nothing distinguishes this training from others on the cache.
        cache = context.cache if context.scope else None
        self.checkpoints = Checkpoints(cache, question, settings.epochs)
        self.reached = ranks().agreed(lambda: self.checkpoints.reached)
        self.earlier_seconds = self.reached.seconds
        # A batch like most of those to come.
        batch = self.loader.batch(torch.arange(min(settings.batch_size, len(split))), 0)
        # What is recorded or compiled takes no part in what batch norms exchange.
        trained = [model.module, *([hooks.extra] if hooks.extra is not None else [])]
        shared = ranks().count > 1 and any(map(has_batch_norms, trained))
        if self.reached.mode:
            self.mode = ExecutionMode(**self.reached.mode)
            if shared:  # one process may have begun
                self.mode = replace(self.mode, compiled=False, replayed=False)
        else:
            traced = hooks.traced and not shared
            self.mode = autotune(model, context, self.total_steps, batch, traced)
        self.module = to_device(model.module, context, self.mode.channels_last)
        self.masks = {
            name: value.detach() != 0
            for name, value in self.module.named_parameters()
            if name in model.sparse and value.requires_grad
        }
        self.modules = {"module": self.module}
        if hooks.extra is not None:
            self.modules["extra"] = hooks.extra.to(context.device)
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizer = _optimizer(parameters, settings)
        self.not_replayed = ""
        """Why a training that was to be replayed is not."""
        run = self._runner(batch)
        self.stepper = Stepper(
            run, parameters, self.optimizer, loss, context, self.mode, hooks.label_weight
        )
        self.stepper.micro_batches = self.reached.micro_batches
        self.state = TrainingState(self.modules, self.optimizer)
        self.validation = self._validation()

    def _runner(self, batch: Batch) -> Run:
        # A batch that is halved is of another shape than a recorded one.
        if self.mode.replayed and self.reached.micro_batches == 1:
            try:
                return runner(self.module, self.mode, batch)
            except Exception as error:  # whatever it is, plain passes work, and a note says so
                self.not_replayed = str(error).strip().partition("\n")[0][:300]
        self.mode = replace(self.mode, replayed=False)
        return runner(self.module, self.mode, None)

    def _validation(self) -> Split | None:
        """Return the items that are judged after every epoch, in memory if they fit."""
        split = self.context.validation
        if split is None or len(split) == 0:
            return None
        items = split if self.settings.judges else some_of(split, CURVE_ITEMS)
        here = ranks().first and not self.context.task.ragged  # the others do not judge
        return resident(items, torch.device("cpu")) if here else items

    def run(self) -> Model:
        settings, context, reached = self.settings, self.context, self.reached
        self.checkpoints.resume(self.state)
        self._in_step()
        if reached.epoch:
            context.log.rows[self.first_row :] = reached.rows
        if self.not_replayed:
            context.log.note(f"training could not be replayed as CUDA graphs: {self.not_replayed}")
        last_kept = time.perf_counter()
        items, unit = len(self.loader.split), context.task.unit
        shown = stage(
            f"training on {items:,} {unit}",
            settings.epochs * items,
            unit,
            done=reached.epoch * items,
        )
        with showing(context.progress), shown as progress:
            while reached.epoch < settings.epochs and not self._out_of_patience():
                good = _copied(self.module)
                started = time.perf_counter()
                row = self._epoch(reached.epoch, progress)
                reached.seconds += time.perf_counter() - started
                finite = not became_nonfinite(self.module.state_dict(), good)
                if not (math.isfinite(row["loss"]) and finite):
                    self._fall_back(row, good)
                    break
                self._validate(row)
                context.log.row("epoch", **row)
                reached.epoch += 1
                if time.perf_counter() - last_kept >= WORTH_KEEPING:
                    self._keep()
                    last_kept = time.perf_counter()
        return self._finish()

    def _in_step(self) -> None:
        """Bring all processes to the state of the first."""
        if ranks().count > 1:
            tensors = ranks().agreed(self.state.tensors)
            self.state.restore(tensors)

    def _epoch(self, epoch: int, progress: Stage) -> dict[str, Any]:
        """Train for an epoch and return its row: mean loss, and accuracy while it was trained."""
        for module in self.modules.values():
            module.train()
        for name in self.hooks.resting:
            self.module.get_submodule(name).eval()
        view = self.hooks.view(epoch)
        total = torch.zeros((), device=self.context.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.context.device)
        count = 0
        # To look at a GPU's figures waits for it.
        check_every = 1 if self.context.device.type == "cpu" else CHECK_EVERY_ON_GPU
        started = time.perf_counter()
        self.hooks.before(view)
        batches = self.loader.epoch(epoch, view, self.hooks.readers())
        for number, batch in enumerate(batches, 1):
            step = epoch * len(self.loader) + number - 1
            rate = self.settings.learning_rate * one_cycle((step + 0.5) / self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, good = self.stepper.step(replace(batch, progress=step / self.total_steps))
            self._mask()
            total, correct, count = total + loss * batch.whole, correct + good, count + batch.whole
            progress.advance(batch.whole, partial(self._words, epoch, total, correct, count))
            if number % check_every == 0 and not math.isfinite(float(total)):
                break
        else:  # an epoch that broke off has not seen the whole view
            self.hooks.after(view)
        _same_statistics(self.modules.values())
        self.reached.samples += count
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": float(total) / count}
        if self.hooks.labelled:
            row["train_accuracy"] = float(correct) / count
        row["samples_per_second"] = round(count / seconds, 1)
        return row

    def _words(self, epoch: int, total: Tensor, correct: Tensor, count: int) -> str:
        """Return what progress shows of an epoch so far."""
        words = f"epoch {epoch + 1} of {self.settings.epochs}, loss {float(total) / count:.4f}"
        return words + (f", accuracy {float(correct) / count:.1%}" if self.hooks.labelled else "")

    def _mask(self) -> None:
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.module.get_parameter(name).mul_(mask)

    def _validate(self, row: dict[str, Any]) -> None:
        """Judge the epoch on the validation split, and remember the best one's weights."""
        if self.validation is None:
            return
        task, device, reached = self.context.task, self.context.device, self.reached
        validation = self.validation
        score, loss = ranks().agreed(lambda: evaluate(self.module, task, validation, device))
        row["validation_accuracy"], row["validation_loss"] = score, loss
        if not self.settings.judges:
            return
        # Among equally accurate epochs the one of lower loss: small splits are full of ties.
        if reached.best is None or (score, -loss) > (reached.best, -reached.best_loss):
            reached.best, reached.best_epoch, reached.best_loss = score, row["epoch"], loss
            if self.settings.keep == "best":
                self.state.best = _copied(self.module)

    def _out_of_patience(self) -> bool:
        patience, reached = self.settings.patience, self.reached
        if patience is None or reached.epoch - reached.best_epoch < patience:
            return False
        self.context.log.note(
            f"training ended after {reached.epoch} of {self.settings.epochs} epochs: none of the "
            f"last {patience} was better on the validation split than epoch {reached.best_epoch}"
        )
        return True

    def _fall_back(self, row: dict[str, Any], good: dict[str, Tensor]) -> None:
        """Return to the state before an epoch whose loss was not finite."""
        epoch, loss = row["epoch"], row["loss"]
        usual = f"try a smaller learning_rate than {self.settings.learning_rate}"
        advice = self.hooks.nan_reason() or usual
        what = f"the loss became {loss}" if not math.isfinite(loss) else "weights became infinite"
        if epoch == 1:
            raise StepFailed(f"{what} in epoch {epoch}: {advice}")
        self.module.load_state_dict(good)
        last = self.reached.best_epoch if self.settings.keep == "best" else epoch - 1
        self.context.log.note(
            f"{what} in epoch {epoch} of {self.settings.epochs}, where training was stopped; the "
            f"state after epoch {last} was kept: {advice}"
        )

    def _keep(self) -> None:
        self.reached.micro_batches = self.stepper.micro_batches
        self.reached.mode = asdict(self.stepper.mode)
        self.reached.rows = self.context.log.rows[self.first_row :]
        self.checkpoints.keep(self.state, self.reached)

    def _finish(self) -> Model:
        if self.state.best:
            self.module.load_state_dict(self.state.best)
        log, reached = self.context.log, self.reached
        if self.checkpoints.full:
            log.note(
                f"the state of the training could not be kept along the way "
                f"({self.checkpoints.full})"
            )
        if has_auxiliary(self.module):
            log.note(self._note_of_auxiliary_heads())
        if self.total_steps < FEW_STEPS:
            log.note(
                f"the training had {self.total_steps} step(s) in all, each on up to "
                f"{self.settings.batch_size} items: a smaller batch_size, or more epochs, give more"
            )
        log.row(
            "fit",
            samples=reached.samples,
            seconds=round(reached.seconds, 3),
            earlier_seconds=round(self.earlier_seconds, 3),
            precision=self.mode.precision,
            pace=str(self.stepper.mode),
            **({"best_epoch": reached.best_epoch} if reached.best_epoch else {}),
            **self.stepper.about(self.settings.batch_size),
        )
        module = self.module.to("cpu").to(memory_format=torch.contiguous_format).eval()
        return replace(self.model, module=module)

    def _note_of_auxiliary_heads(self) -> str:
        if not any(self.hooks.label_weight(progress) for progress in (0.0, 1.0)):
            return (
                "auxiliary heads were not trained: they learn from labels, and the loss uses none"
            )
        return (
            f"auxiliary heads were trained along: each adds {AUXILIARY} of the labels' loss; they "
            f"are not deployed"
        )


def _same_statistics(modules: Iterable[nn.Module]) -> None:
    """Have all processes agree on the running statistics of norms.

    Those of batch norms are the same but for rounding, and for passes that memory did not hold;
    each process has its own of others, such as instance norms.
    """
    buffers = [named for module in modules for named in module.named_buffers()]
    ranks().average([b for name, b in buffers if name.endswith(("running_mean", "running_var"))])
    for name, buffer in buffers:
        if name.endswith("num_batches_tracked"):
            ranks().most(buffer)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _optimizer(parameters: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    decayed = [p for p in parameters if p.ndim > 1 and p.requires_grad]
    spared = [p for p in parameters if p.ndim <= 1 and p.requires_grad]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    # On a GPU one kernel for all parameters; on a CPU it is no faster, and rounds otherwise.
    fused = True if all(p.device.type == "cuda" for p in parameters) else None
    rate = settings.learning_rate
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
