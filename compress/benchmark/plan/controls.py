"""Controls of equal cost: what training alone gives, with as many samples and no technique.

A chain that trains differs from its baseline in two ways: by the technique, and by the training.
Its control has the training only, with the same settings, so what the chain has over its control
is the technique's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.compressor import Compressor, leaves
from compress.techniques.finetune import Finetune
from compress.techniques.train import Train
from compress.training import Training

SETTINGS = tuple(item.name for item in dataclasses.fields(Training) if item.name != "epochs")


@dataclass(frozen=True)
class Control:
    """A chain's control, or in words why it has none although it trains."""

    step: Training | None
    reason: str = ""


def control_of(chain: Compressor, model: str = "") -> Control | None:
    """Return the control of a chain; None if it does not train or is itself such a control.

    For a chain that trains a student, the student trained on labels: `train(student=...)` with
    the settings of the step that trained it; otherwise the baseline trained on:
    `finetune(...)` with those of the step that trains longest. Both get the epochs of all
    the chain's steps. `model` names the suite's model, whose architecture a student may have.
    """
    if type(chain) in (Finetune, Train):
        return None
    steps = leaves(chain)
    if own := [step for step, _ in steps if _trains_in_its_own_way(step)]:
        return Control(None, f"{own[0].name()} trains in its own way, which no control repeats")
    trainings = [(step, times) for step, times in steps if isinstance(step, Training)]
    if not trainings:
        return None
    if any(step.transfers for step, _ in trainings):
        return Control(None, "it learns from a transfer set, which labels alone cannot do")
    epochs = sum(step.epochs * times for step, times in trainings)
    taught = [step for step, _ in trainings if step.builds]
    if taught:
        # A later student learns from an earlier one: the last is what is deployed.
        student = _name_of_student(steps, model)
        if not student:
            return Control(None, "no name builds its student with fresh weights")
        return Control(Train(student=student, epochs=epochs, **_settings(taught[-1])))
    longest, _ = max(trainings, key=lambda pair: pair[0].epochs * pair[1])
    return Control(Finetune(epochs=epochs, **_settings(longest)))


def _name_of_student(steps: Sequence[tuple[Compressor, int]], model: str) -> str:
    """Return the name of the last student's architecture; '' if steps before it made it."""
    name, entering, shaped = "", model, False
    for step, _ in steps:
        if step.students:
            (entering,) = step.students
            name, shaped = entering, False
        elif step.builds:
            name = "" if shaped else entering
        elif not isinstance(step, Training):
            shaped = True
    return name


def _trains_in_its_own_way(step: Compressor) -> bool:
    """Whether a plug-in uses the training data, or students, otherwise than our steps do."""
    if isinstance(step, Training):
        return len(step.students) > 1
    return "train" in step.needs or bool(step.students)


def _settings(step: Training) -> dict[str, Any]:
    """Return all settings but the epochs, by value: the control's class has other defaults."""
    return {name: getattr(step, name) for name in SETTINGS}
