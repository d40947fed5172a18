"""How often a model with 3, 5 or 10 % more work is called slower, and what that takes.

    python benchmarks/measurement/detect.py --out reports/measurement [--trials 10]

The model is a stack of 100 equal layers and a small head; the work is added as 3, 5 or 10 more of
these layers. Each trial is a timing of its own with a budget of 30 seconds, which ends earlier
when the interval is within ± 1 %.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import STACKS, Network, stacks
from trials import Trial, outcome, publish, run_trials, share, table

from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.summary import summarise

ADDED = (3, 5, 10)
SECONDS = 30.0


def once(trial: dict[str, Any], networks: dict[str, list[Network]]) -> dict[str, Any]:
    """Time a stack against itself with some layers added."""
    plain, *more = networks[trial["stack"]]
    added = more[ADDED.index(trial["added"])]
    request = TimingRequest(
        {"plain": plain.path, "added": added.path},
        [plain.samples],
        {"plain": plain.expected, "added": added.expected},
        baseline="plain",
        settings=("cpu",),
        effort=Effort(seconds=SECONDS),
        seed=trial["number"],
    )
    timings = summarise(collect(request), request.seed)
    return outcome(timings, "added", "plain", "cpu")


def rows(found: list[Trial]) -> Iterator[list[object]]:
    for added in ADDED:
        for name in (*STACKS, "all"):
            group = [
                t["found"]
                for t in found
                if t["trial"]["added"] == added and name in (t["trial"]["stack"], "all")
            ]
            if not group:
                continue
            seconds = [f["seconds"] for f in group]
            yield [
                f"+{added} %",
                name,
                f"{np.median([f['ms'] for f in group]):.3g}",
                f"{1 / np.median([f['speedup'] for f in group]) - 1:+.1%}",
                share(sum(f["verdict"] == "slower" for f in group), len(group)),
                sum(f["verdict"] == "faster" for f in group),
                f"{np.median([f['margin'] for f in group]):.2%}",
                f"{np.median(seconds):.1f}",
                f"{max(seconds):.1f}",
            ]


HEAD = ("work", "stack", "ms", "time", "called slower", "faster", "margin", "s, median", "s, most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=10)
    options = parser.parse_args()
    wanted = [
        {"stack": name, "added": added, "number": number}
        for number in range(options.trials)
        for added in ADDED
        for name in STACKS
    ]
    with tempfile.TemporaryDirectory() as folder:
        networks = {name: list(stacks(name, list(ADDED), Path(folder))) for name in STACKS}
        path = options.out / "detect.jsonl"
        found = run_trials(path, wanted, lambda trial: once(trial, networks))
    publish(
        options.out / "detect.md",
        "A model against itself with work added",
        [
            "The model is a stack of 100 equal layers (each followed by a ReLU) and a small head;"
            " 3, 5 or 10 more of these layers are the work that is added.\n",
            table(HEAD, rows(found)),
            "time: how much longer it took, median over the trials; called slower: the share of"
            " trials with that verdict, and its 95 % interval (Wilson's); s: seconds that a trial"
            f" took (budget {SECONDS:.0f}).\n",
        ],
        "python benchmarks/measurement/detect.py --out reports/measurement"
        f" --trials {options.trials}",
    )


if __name__ == "__main__":
    main()
