"""Training: the loop that every technique shares, and what makes it fast and safe to stop."""

from compress.training.batch_loader import Batch, Reader
from compress.training.evaluate import accuracy, evaluate
from compress.training.execution_mode import ExecutionMode
from compress.training.loop import Loss, TrainingHooks, fit, labels_loss
from compress.training.settings import Training, one_cycle

__all__ = [
    "Batch",
    "ExecutionMode",
    "Loss",
    "Reader",
    "Training",
    "TrainingHooks",
    "accuracy",
    "evaluate",
    "fit",
    "labels_loss",
    "one_cycle",
]
