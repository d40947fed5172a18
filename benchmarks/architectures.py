"""Which architectures go through which techniques, proven on random weights.

For each torchvision classifier: build it for 10 classes, randomise it, then prune channels,
factorize, save, load, export and verify. Random weights say nothing of accuracy, but everything
of soundness: a file that passes gives the module's outputs.

    python benchmarks/architectures.py --out reports/architectures [NAME ...]

Without names: every classification model of torchvision (hours). A name that fails is a row with
the reason; the others go on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.verify import verify
from compress.model import Model, forward, items_like, load, save
from compress.system.files import write_atomic
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.zoo.models import build_module, fresh

SIDE = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 96}
STEPS = {
    "pruned": "prune_channels(macs=0.5, calibration=0)",
    "factorized": "factorize(macs=0.6)",
    "both": "prune_channels(macs=0.7, calibration=0) -> factorize(macs=0.8, calibration=0)",
}
COLUMNS = ("model", "params", "step", "macs_kept", "verified", "loads_equal", "seconds", "note")


def randomize(module: nn.Module, inputs: torch.Tensor) -> None:
    """Give every tensor a random value, and batch norms the statistics of some data."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(inputs)
    module.eval()


def prove(name: str) -> list[dict[str, Any]]:
    side = SIDE.get(name, 64)
    spec = Preprocessing(3, (side, side), (0.5,) * 3, (0.25,) * 3)
    task = ImageClassification("random", tuple("0123456789"), spec)
    model = fresh(f"torchvision:{name}", task)
    inputs = items_like(model.example, 64, seed=1)
    randomize(model.module, inputs[0][:8])
    rows = []
    for label, text in STEPS.items():
        started = time.perf_counter()
        row: dict[str, Any] = {
            "model": name,
            "params": counts.count(model.module, model.example).params,
            "step": label,
        }
        try:
            row |= attempt(text, model, task, inputs)
        except Exception as error:
            row |= {"verified": False, "note": f"{type(error).__name__}: {error}"}
        rows.append({**row, "seconds": round(time.perf_counter() - started, 1)})
    return rows


def attempt(
    text: str, model: Model, task: ImageClassification, inputs: tuple[torch.Tensor, ...]
) -> dict[str, Any]:
    context = StepContext(task, log=StepLog())
    result = run(chain(text), model, context)
    verdict = verify(export(result), result, inputs, lowered=False)
    with tempfile.TemporaryDirectory() as folder:
        save(result, Path(folder), build_module)
        again = load(Path(folder), build_module)
    same = torch.allclose(
        forward(again.module, inputs), forward(result.module, inputs), rtol=1e-4, atol=1e-4
    )
    kept = counts.macs(result.module, model.example) / counts.macs(model.module, model.example)
    return {
        "macs_kept": round(kept, 3),
        "verified": verdict.ok,
        "loads_equal": same,
        "note": "; ".join([*context.log.notes, verdict.reason]).strip("; "),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = options.names or torchvision.models.list_models(module=torchvision.models)
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows += prove(name)
        except Exception as error:
            rows.append({"model": name, "note": f"{type(error).__name__}: {error}"})
        for row in rows[-len(STEPS) :]:
            print(*(row.get(column, "") for column in COLUMNS), flush=True)
        write(rows, options.out)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    lines = [dict.fromkeys(COLUMNS, "") | row for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    head = "| " + " | ".join(COLUMNS[:-1]) + " |\n" + "| --- " * (len(COLUMNS) - 1) + "|\n"
    body = "".join("| " + " | ".join(str(r[c]) for c in COLUMNS[:-1]) + " |\n" for r in lines)
    command = "python benchmarks/architectures.py --out reports/architectures"
    notes = sorted({f"- {r['model']}: {r['note']}\n" for r in lines if r["note"]})
    text = f"{head}{body}\n{''.join(notes)}\nThis gives the table: `{command}`\n"
    write_atomic(out / "table.md", text)


if __name__ == "__main__":
    main()
