"""Training: the loop that every technique shares, and what makes it fast and safe to stop."""

from compress.training.evaluate import accuracy, evaluate
from compress.training.feed import Batch
from compress.training.loop import Around, Loss, fit, labels_loss
from compress.training.pace import Pace, autocast, has_convolutions, place_inputs, to_device
from compress.training.settings import Training, one_cycle

__all__ = [
    "Around",
    "Batch",
    "Loss",
    "Pace",
    "Training",
    "accuracy",
    "autocast",
    "evaluate",
    "fit",
    "has_convolutions",
    "labels_loss",
    "one_cycle",
    "place_inputs",
    "to_device",
]
