"""`kill -9` at random moments, and budgets: is anything computed twice, is the best ever lost?

    python benchmarks/recommend/kills_and_budgets.py kills --out reports/recommend [--kills 20]
    python benchmarks/recommend/kills_and_budgets.py budgets --out reports/recommend

Kills: a search of the digits is started, after a random time all its processes are killed, and it
is started again in the same folder, until it has its finalists; then the next folder begins. After
each kill the file at the top must be whole, run, and be the one that `best.json` names.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, table_of, write_report

from compress.deploy.session import session
from compress.recommender.arguments import seconds_of
from compress.recommender.measured import Notebook
from compress.system.files import sha256_file, write_atomic
from compress.system.memory import family

SEARCH = [
    *("--data", "digits", "--model", "cnn-small(width=16)", "--baseline", "train(epochs=4)"),
    *("--max-drop", "5", "--step-threads", "1", "--threads", "1"),
]


def command(out: Path, budget: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "compress", "recommend", str(out), "--budget", budget, *more]


def start(out: Path, budget: str, *more: str) -> subprocess.Popen[bytes]:
    first = [] if (out / "search.json").exists() else [*SEARCH, *more]
    with open(out.parent / f"{out.name}.log", "ab") as log:
        return subprocess.Popen(command(out, budget, *first), stdout=log, stderr=log)


def twice(out: Path) -> int:
    """Return how many results were computed again after they had been kept, by the logs."""
    events = sorted(
        line
        for log in [*out.glob("search/logs/*.log"), *out.glob("finalists/logs/*.log")]
        for line in log.read_text().splitlines()
        if " begin " in line or " kept " in line
    )
    kept: Counter[str] = Counter()
    again = 0
    for event in events:
        _, what, key = event.split()[:3]
        if what == "kept":
            kept[key] += 1
        elif kept[key]:
            again += 1
    return again


def damage(out: Path, seen: str) -> tuple[str, str]:
    """Return what is wrong with the file at the top ('' if nothing), and its chain."""
    if not (out / "best.json").exists():
        return ("the best so far is gone" if seen else ""), ""
    chain = json.loads((out / "best.json").read_text())["chain"]
    try:
        session((out / "model.onnx").read_bytes())
    except Exception as error:  # whatever it is, the file is of no use
        return f"the file does not load: {error}", chain
    same = sha256_file(out / "model.onnx") == json.loads((out / "best.json").read_text())["sha256"]
    # Killed between the two: the file is the newer one, and whole.
    return "" if same else "best.json is older than the file", chain


def kills(out: Path, count: int, seed: int = 0) -> None:
    chance, lines, number, folder_number = random.Random(seed), [], 0, 0
    wrong: Counter[str] = Counter()
    again = trials = 0
    with tempfile.TemporaryDirectory(prefix="compress-kills-") as place:
        while number < count:
            folder_number += 1
            out_of_run, seen = Path(place) / f"run-{folder_number}", ""
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
                    reason, chain = damage(out_of_run, seen)
                    seen = chain or seen
                    wrong[reason or "whole"] += bool(reason or seen)
                    print(f"kill {number}: {reason or chain or 'nothing found yet'}", flush=True)
            again += twice(out_of_run)
            trials += len(Notebook.read(out_of_run / "trials.jsonl").trials)
            lines.append(f"- folder {folder_number}: exit code {process.returncode}")
    text = [
        f"{number} kills of all processes of a search of the digits, at random moments from 4 to "
        f"45 s after its start, in {folder_number} folders, {trials} trials in all.",
        "",
        f"- results computed again after they had been kept: {again}",
        f"- the file at the top after a kill: {dict(wrong)}",
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
