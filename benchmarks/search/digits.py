"""What a search is worth on digits, over seeds: against chance, pruning, and a family's students.

    python benchmarks/search/digits.py --out reports/search/digits.md [--seeds 3]

A ResNet-14 learns the digits of scikit-learn (8 × 8 pixels). At 0.3 of its MACs, each way of making
it smaller is followed by the same training, and judged on the test items. Differences are between
rows of the same seed, each of which begins with a net of its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from compress import counts
from compress.compressor import Chain, run, seed_everything
from compress.context import StepContext
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain
from compress.training import accuracy
from compress.zoo.data import load_data
from compress.zoo.models import fresh

MODEL, BASELINE, AFTER = "resnet14", "train(epochs=10, learning_rate=0.005)", "finetune(epochs=3)"
JUDGES = "candidates=32, population=8"
RANDOM = "search(macs=0.3, strategy='random')"
TRAINED = f"search(macs=0.3, epochs=10, {JUDGES})"
TRAINED_RANDOM = "search(macs=0.3, epochs=10, strategy='random')"
WAYS = (
    f"search(macs=0.3, {JUDGES})",
    f"search(macs=0.3, strategy='sampling', {JUDGES})",
    RANDOM,
    "prune_channels(macs=0.3)",
    TRAINED,
    TRAINED_RANDOM,
    "search(macs=0.3, family='resnet', epochs=10)",
)
LIKE = {TRAINED: TRAINED_RANDOM}
"""Rows that are compared with another row than `RANDOM`."""


def context_of(data: Data, seed: int, teacher: Model | None = None) -> StepContext:
    return StepContext(
        task=data.task,
        train=data.train,
        validation=data.validation,
        calibration=data.calibration,
        teacher=teacher,
        build=lambda name: fresh(name, data.task),
        seed=seed,
    )


def measured(data: Data, seed: int) -> dict[str, tuple[float, float]]:
    """Return of the baseline and of every way the accuracy, and the share of the MACs."""
    seed_everything(seed)
    model = run(chain(BASELINE), fresh(MODEL, data.task), context_of(data, seed))
    whole = counts.macs(model.module, model.example)
    found = {"baseline": (accuracy(model.module, data.task, data.test), 1.0)}
    for way in WAYS:
        step = Chain(chain(way), chain(AFTER))
        result = run(step, model, context_of(data, seed, model))
        share = counts.macs(result.module, result.example) / whole
        found[way] = accuracy(result.module, data.task, data.test), share
        print(f"{seed}  {way}  {found[way][0]:.4f}  {share:.3f}", flush=True)
    return found


def table(rows: list[dict[str, tuple[float, float]]]) -> str:
    """Return the means over seeds, and the differences with their standard errors."""
    lines = [
        "| way | accuracy | MACs | against a random architecture, points |",
        "| --- | --- | --- | --- |",
    ]
    for way in rows[0]:
        scores = [100 * row[way][0] for row in rows]
        share = statistics.mean(row[way][1] for row in rows)
        other = LIKE.get(way, RANDOM)
        gains = [100 * (row[way][0] - row[other][0]) for row in rows]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        gain = "" if way in ("baseline", other) else f"{statistics.mean(gains):+.2f} ±{error:.2f}"
        lines.append(f"| `{way}` | {statistics.mean(scores):.2f} % | {share:.2f} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data = load_data("digits")
    rows = [measured(data, seed) for seed in range(arguments.seeds)]
    text = (
        f"# Searches on digits\n\n`python benchmarks/search/digits.py --out OUT.md "
        f"--seeds {arguments.seeds}`: "
        f"{MODEL} after `{BASELINE}`, then each way and `{AFTER}`; {len(data.test)} test items, "
        f"means over {arguments.seeds} seeds, ± the standard error. What trains shared weights is "
        f"compared with a random architecture that had the same training.\n\n{table(rows)}\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
