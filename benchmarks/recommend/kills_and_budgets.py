"""`kill -9` at random moments, and budgets: is anything computed twice, is the best ever lost?

    python benchmarks/recommend/kills_and_budgets.py kills --out reports/recommend [--kills 20]
    python benchmarks/recommend/kills_and_budgets.py budgets --out reports/recommend

Kills: a search of the digits is started, after a random time all its processes are killed, and it
is started again in the same folder, until it has its finalists; then the next folder begins. After
each kill the file at the top must be whole, run, be the one that `best.json` names, and be no worse
than the one after the kill before.
Budgets: how long a search takes by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, table_of, write_report

from compress.deploy.session import session
from compress.recommender.arguments import seconds_of
from compress.recommender.goal import Goal, Judge, finalists_for
from compress.recommender.measured import Measured, Notebook
from compress.system.amounts import plural
from compress.system.files import sha256_file, write_atomic
from compress.system.memory import family

DROP, TEST_ITEMS = 5.0, 360
FIGURES = ("items", "lost", "gained", "onnx_bytes", "macs", "params")
TIMES = ("speedup", "speedup_low", "speedup_high", "ms")
SEARCH = [
    *("--data", "digits", "--model", "cnn-small(width=16)", "--baseline", "train(epochs=4)"),
    *("--max-drop", str(DROP), "--step-threads", "1", "--threads", "1"),
]


def command(out: Path, budget: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "compress", "recommend", str(out), "--budget", budget, *more]


def start(out: Path, budget: str, *more: str) -> subprocess.Popen[bytes]:
    first = [] if (out / "search.json").exists() else [*SEARCH, *more]
    with open(out.parent / f"{out.name}.log", "ab") as log:
        return subprocess.Popen(command(out, budget, *first), stdout=log, stderr=log)


def twice(out: Path) -> tuple[int, int]:
    """Return how many results were computed again after they had been kept, by the logs, and how
    many were begun again because a kill came before that.
    """
    events = sorted(
        line
        for log in [*out.glob("search/logs/*.log"), *out.glob("finalists/logs/*.log")]
        for line in log.read_text().splitlines()
        if " begin " in line or " kept " in line
    )
    kept: set[str] = set()
    begun: set[str] = set()
    again = midway = 0
    for event in events:
        _, what, key = event.split()[:3]
        if what == "kept":
            kept.add(key)
        elif key in kept:
            again += 1
        elif key in begun:
            midway += 1
        else:
            begun.add(key)
    return again, midway


def damage(out: Path, seen: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with the file at the top ('' if nothing), and what is said of it."""
    if not (out / "best.json").exists():
        return ("the best so far is gone" if seen else ""), {}
    best = json.loads((out / "best.json").read_text())
    try:
        session((out / "model.onnx").read_bytes())
    except Exception as error:  # whatever it is, the file is of no use
        return f"the file does not load: {error}", best
    if sha256_file(out / "model.onnx") != best["sha256"]:
        # Killed between the two: the file is the newer one, and whole.
        return "best.json is older than the file", best
    return ("the best so far is worse than before" if is_worse(best, seen) else ""), best


def is_worse(best: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether another chain took the place of a better one, as the search itself ranks them."""
    if not before or best["chain"] == before["chain"] or "items" not in best:
        return False  # what finals have named has no figures of validation items
    if "items" not in before:
        return before["state"] == "qualifies"
    goal = Goal(max_drop=DROP)
    judge = Judge(goal, Measured("baseline"), TEST_ITEMS, finalists_for(goal, TEST_ITEMS))
    ours, theirs = (
        Measured(one["chain"], **{name: one[name] for name in (*FIGURES, *TIMES)})
        for one in (best, before)
    )
    return judge.better(theirs, ours)


def kills(out: Path, count: int, seed: int = 0) -> None:
    chance, lines, number, folder_number = random.Random(seed), [], 0, 0
    wrong: Counter[str] = Counter()
    again = midway = trials = 0
    with tempfile.TemporaryDirectory(prefix="compress-kills-") as place:
        while number < count:
            folder_number += 1
            out_of_run = Path(place) / f"run-{folder_number}"
            seen: dict[str, Any] = {}
            while True:
                process = start(out_of_run, "3m", "--trials", "6", "--timing-seconds", "2")
                try:
                    process.wait(chance.uniform(4, 45) if number < count else 900)
                    break  # it came to its end
                except subprocess.TimeoutExpired:
                    for one in family(process.pid):
                        try:
                            os.kill(one, signal.SIGKILL)
                        except ProcessLookupError:
                            continue
                    process.wait()
                    number += 1
                    reason, best = damage(out_of_run, seen)
                    seen = best or seen
                    wrong[reason or "whole, and no worse than before"] += bool(reason or seen)
                    found = best.get("chain", "nothing found yet")
                    print(f"kill {number}: {reason or found}", flush=True)
            counted = twice(out_of_run)
            again, midway = again + counted[0], midway + counted[1]
            trials += len(Notebook.read(out_of_run / "trials.jsonl").trials)
            lines.append(f"- folder {folder_number}: exit code {process.returncode}")
    text = [
        f"{number} kills of all processes of a search of the digits, at random moments from 4 to "
        f"45 s after its start, in {plural(folder_number, 'folder')}, {trials} trials in all.",
        "",
        f"- results computed again after they had been kept: {again}",
        f"- results begun again because a kill came before they were kept (trainings go on from "
        f"their last epoch): {midway}",
        *[
            f"- the file at the top after a kill: {count} times {what}"
            for what, count in wrong.items()
        ],
        *lines,
    ]
    write_atomic(out / "kills.md", ("\n".join(text) + "\n").encode())
    print("\n".join(text))


def budgets(out: Path, wanted: list[str]) -> None:
    """Search with some budgets, and keep how long each took beside those of earlier calls."""
    kept = KeptRows(out / "budgets.jsonl", "budget")
    with tempfile.TemporaryDirectory(prefix="compress-budgets-") as place:
        for budget in wanted:
            folder = Path(place) / budget
            started = time.monotonic()
            process = start(folder, budget)
            process.wait()
            took = time.monotonic() - started
            trials = len(Notebook.read(folder / "trials.jsonl").trials)
            share = f"{took / seconds_of(budget):.0%}"
            row = {"budget": budget, "took": f"{took:.0f} s", "of it": share, "trials": trials}
            kept.add({**row, "exit code": process.returncode})
            if not trials:
                print((folder.parent / f"{folder.name}.log").read_text()[-2000:])
    rows = sorted(kept.read().values(), key=lambda row: seconds_of(row["budget"]))
    lines = table_of(("budget", "took", "of it", "trials", "exit code"), rows)
    command = "python benchmarks/recommend/kills_and_budgets.py budgets --out reports/recommend"
    write_report(out / "budgets.md", "How far over its budget a search goes", lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kills", "budgets"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--budgets", default="1m,5m")
    options = parser.parse_args()
    if options.what == "kills":
        kills(options.out, options.kills)
    else:
        budgets(options.out, options.budgets.split(","))


if __name__ == "__main__":
    main()
