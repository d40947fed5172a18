"""Is what is promised kept? Searches on different data, judged by items that none of them saw.

    python benchmarks/recommend/promise.py --out reports/recommend [--runs 20] [--budget 60s]

Each run has other training, validation and test items of 14 x 14 MNIST, and another seed. The rest
of MNIST, 65,000 items, tells how much the winner really loses: a broken promise is a loss of more
than `max-drop` there. It can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
from mnist14 import arrays, save

import compress
from compress.deploy.session import predict, session
from compress.stats.pairs import difference
from compress.system.files import append_line, write_atomic
from compress.zoo.data import load_data

LINES = "promise.jsonl"
MODEL, BASE, DROP = "cnn-small(width=32)", "train(epochs=4)", 1.0
TRAIN, VAL, TEST = 2000, 1000, 2000
BATCH = 2000


def right(file: Path, data: str, found: dict[str, np.ndarray]) -> np.ndarray:
    """Return whether a file's answers to the items of the truth are right, bool, (N,)."""
    import torch

    task = load_data(data).task
    raw = torch.from_numpy(found["x_truth"]).permute(0, 3, 1, 2).contiguous()
    (inputs,) = task.prepare((raw,), torch.device("cpu"))
    batches = [(part,) for part in inputs.split(BATCH)]
    logits = predict(session(file.read_bytes()), batches)
    return np.asarray(logits.argmax(1) == found["y_truth"])


def one(seed: int, budget: str, work: Path) -> dict[str, object]:
    found = arrays(seed, TRAIN, VAL, TEST)
    place = work / f"{seed}.npz"
    save(place, found)
    best = compress.recommend(
        work / f"run-{seed}",
        budget=budget,
        data=f"arrays:{place}",
        model=MODEL,
        baseline=BASE,
        max_drop=DROP,
        by="size",
        seed=seed,
        step_threads=1,
        threads=1,
        progress=False,
    )
    rows = {row["chain"]: row for row in best.rows}
    line: dict[str, object] = {
        "seed": seed,
        "budget": budget,
        "winner": best.winner,
        "nearest": best.nearest,
    }
    line |= {"sentence": best.sentence, "trials": len(best.trials), "optimism": best.optimism}
    if best.winner:
        folder = best.out / "finalists"
        before, after = (
            right(folder / rows[chain]["onnx_path"], f"arrays:{place}", found)
            for chain in ("baseline", best.winner)
        )
        paired = difference(before, after)
        row = rows[best.winner]
        line |= {
            "test": 100 * row["accuracy_delta"],
            "test_low": 100 * row["accuracy_delta_low"],
            "test_high": 100 * row["accuracy_delta_high"],
            "truth": 100 * paired.value,
            "items": paired.items,
            "smaller": rows["baseline"]["onnx_bytes"] / row["onnx_bytes"],
        }
    return line


def table(lines: list[dict[str, float]]) -> str:
    budgets = " or ".join(dict.fromkeys(str(line["budget"]) for line in lines))
    won = [line for line in lines if line["winner"]]
    broken = [line for line in won if line["truth"] < -DROP]
    inside = [line for line in won if line["test_low"] <= line["truth"] <= line["test_high"]]
    text = [
        f"{len(lines)} searches of {budgets}, `{MODEL}` on 14 x 14 MNIST, {TRAIN:,} training, "
        f"{VAL:,} validation and {TEST:,} test items, others in each; max-drop {DROP}, by size.",
        "",
        f"- a chain qualified in {len(won)} of {len(lines)}",
        f"- lost more than promised on the items that no search saw: {len(broken)} of {len(won)}",
    ]
    if won:
        gap = [line["test"] - line["truth"] for line in won]
        text += [
            f"- the truth lies in the interval that was reported: {len(inside)} of {len(won)}",
            f"- test less truth: {fmean(gap):+.2f} points on average "
            f"({min(gap):+.2f} to {max(gap):+.2f})",
            f"- smaller by: {min(line['smaller'] for line in won):.1f} to "
            f"{max(line['smaller'] for line in won):.1f} times",
        ]
    text += ["", "| seed | winner | smaller | test, points | truth, points | trials |"]
    text.append("|" + " --- |" * 6)
    for line in lines:
        if line["winner"]:
            figures = f"{line['smaller']:.1f} | {line['test']:+.2f} | {line['truth']:+.2f}"
        else:
            figures = "- | - | -"
        chain = line["winner"] or "none"
        text.append(f"| {line['seed']} | `{chain}` | {figures} | {line['trials']} |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--budget", default="60s")
    options = parser.parse_args()
    place = options.out / LINES
    done = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    for seed in range(options.runs):
        if seed in {line["seed"] for line in done}:
            continue
        with tempfile.TemporaryDirectory(prefix="compress-promise-") as folder:
            line = one(seed, options.budget, Path(folder))
        append_line(place, line)
        done.append(line)
        print(line, flush=True)
        write_atomic(options.out / "promise.md", table(done).encode())


if __name__ == "__main__":
    main()
