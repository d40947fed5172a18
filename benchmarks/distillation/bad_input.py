"""What distillation says to input that cannot work, and to accidents on its way.

python benchmarks/distillation/bad_input.py --out reports/distillation
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import publish, small_disk, table
from PIL import Image
from torch import nn

from compress.benchmark.store.store import Store, StoredStepCache
from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.errors import StepFailed, UserError
from compress.model import Model
from compress.tasks.base import Data
from compress.tasks.image_classification import ImageClassification
from compress.techniques import chain
from compress.training import evaluate
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.transfer import load_transfer


def said(act: Callable[[], object]) -> str:
    """Return the sentence of the error that a call raises."""
    try:
        act()
    except (UserError, StepFailed) as error:
        return f"refused: {error}"
    return "NOT REFUSED"


def refusals(
    data: Data, teacher: Model, context: StepContext, folder: Path
) -> list[tuple[str, str]]:
    wide = replace(teacher.copy(), module=nn.Sequential(nn.Flatten(), nn.Linear(64, 12)))
    large = replace(wide, probe=(torch.zeros(1, 1, 16, 16),))
    for number in range(3):
        (folder / "loose").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (80 * number,) * 3).save(folder / "loose" / f"{number}.png")
    name = f"imagefolder:{folder}/loose"
    loose = {name: load_transfer(name, data)}
    learn = chain("distill(student='mlp', epochs=1)")
    unlabelled = f"distill(student='mlp', epochs=1, transfer={name!r}"
    calls: dict[str, Callable[[], object]] = {
        "a teacher with 12 classes": lambda: run(learn, teacher, replace(context, teacher=wide)),
        "a teacher of 16 x 16 images": lambda: run(learn, teacher, replace(context, teacher=large)),
        "an unlabelled transfer set, hard_weight=0.1": lambda: run(
            chain(f"{unlabelled})"), teacher, replace(context, transfers=loose)
        ),
        "an unlabelled transfer set, loss='dkd'": lambda: run(
            chain(f"{unlabelled}, hard_weight=0, loss='dkd')"),
            teacher,
            replace(context, transfers=loose),
        ),
        "temperature=0": lambda: chain("distill(loss=kd(temperature=0))"),
        "temperature=-4": lambda: chain("distill(loss=kd(temperature=-4))"),
        "final_temperature=0": lambda: chain("distill(loss=kd(final_temperature=0))"),
        "an unknown teacher": lambda: run(
            chain("distill(epochs=1, teacher='baselime')"), teacher, context
        ),
        "an unknown loss": lambda: chain("distill(loss='kl')"),
        "an option of another loss": lambda: chain("distill(loss=kd(beta=1.0))"),
        "hints without a match": lambda: run(
            chain("distill(student='mlp', epochs=1, hints='fitnets')"), teacher, context
        ),
        "a learning rate of 1e9": lambda: run(
            chain("distill(epochs=4, learning_rate=1e9, optimizer='sgd', loss='logits')"),
            teacher,
            context,
        ),
    }
    return [(what, said(act).replace(str(folder), "...")) for what, act in calls.items()]


def explosion(data: Data, teacher: Model, context: StepContext) -> list[tuple[str, str]]:
    """Let the teacher's logits explode in the third of six epochs."""

    class Explodes(nn.Module):
        calls = 0

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            Explodes.calls += len(inputs)
            late = Explodes.calls > 2.5 * len(data.train)
            return self.inner(inputs) * (float("nan") if late else 1.0)

    step_log = StepLog()
    broken = replace(teacher.copy(), module=Explodes(teacher.module))
    spoilt = replace(context, teacher=broken, log=step_log)
    made = run(chain("distill(student='mlp', epochs=6, views=0)"), teacher, spoilt)
    accuracy, _ = evaluate(made.module, data.task, data.test)
    return [
        ("NaN in the loss in epoch 3", "; ".join(step_log.notes)),
        ("its accuracy", f"{accuracy:.1%}"),
    ]


def full_disk(teacher: Model, context: StepContext, folder: Path) -> list[tuple[str, str]]:
    """Keep what the teacher says on a disk that takes one view and no more."""
    with small_disk(folder / "disk", "48k") as mounted:
        if not mounted:
            return [("a cache on a full disk", "not tried: mounting a tmpfs is not allowed here")]
        step = chain("distill(student='mlp', epochs=3)")
        assert isinstance(context.task, ImageClassification)
        task = replace(context.task, augment="crop")
        plain, small = StepLog(), StepLog()
        expected = run(step, teacher, replace(context, task=task, log=plain))
        cache = StoredStepCache(Store(folder / "disk" / "store"), "proof")
        made = run(step, teacher, replace(context, task=task, cache=cache, log=small))
        ours, theirs = made.module.state_dict(), expected.module.state_dict()
        same = all(torch.equal(ours[key], theirs[key]) for key in ours)
    return [
        ("a cache on a full disk", "; ".join(small.notes) or "NOTHING SAID"),
        ("weights equal those made without a cache's disk", str(same)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_data("digits")
    seed_everything(0)
    context = StepContext(
        task=data.task,
        train=data.train,
        validation=data.validation,
        calibration=data.calibration,
        build=lambda name: fresh(name, data.task),
        setting=data.identity(),
    )
    teacher = run(chain("train(epochs=6)"), fresh("cnn-small", data.task), context)
    context = replace(context, teacher=teacher, log=StepLog())
    with tempfile.TemporaryDirectory() as place:
        lines = [
            *refusals(data, teacher, context, Path(place)),
            *explosion(data, teacher, context),
            *full_disk(teacher, context, Path(place)),
        ]
    publish(
        options.out / "bad-input.md",
        "What distillation says to bad input",
        [table(("input or accident", "what it says"), lines)],
        "python benchmarks/distillation/bad_input.py --out reports/distillation",
    )


if __name__ == "__main__":
    main()
