"""`kill -9` at random moments, again and again: are the rows those of an undisturbed run?

    python benchmarks/robustness/kills.py --out reports/robustness [--kills 50]

A run of a small suite is started, and after a random time one of its processes is killed: the run
itself, the process that forks its steps, a step, a timing process, or all of them at once. Then it
is started again in the same folder, until it comes to its end; then the next folder begins.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import SUITE, command, publish, rows, run, table

from compress.system.memory import family

TARGETS = ("the run", "the server", "a step or timing process", "all at once")


def victims(pid: int, target: str) -> list[int]:
    """Return the processes to kill, of a run's process and all its descendants."""
    found = family(pid)
    if target == "the run":
        return [pid]
    if target == "all at once":
        return found
    named = {one: name(one) for one in found}
    if target == "the server":
        return [one for one in found if named[one] == "compress-runs"] or [pid]
    servers = ("compress-base", "compress-runs")
    others = [one for one in found if one != pid and named[one] not in servers]
    return others[-1:] or [pid]


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet taken note of has no program."""
    return Path(f"/proc/{pid}/exe").exists()


def computed_twice(out: Path) -> int:
    """Return how often something began, by the logs, after it had been kept."""
    lines = sorted(
        line
        for log in (out / "logs").glob("*.log")
        for line in log.read_text(errors="replace").splitlines()
        if re.match(r"\d{4}-\S+ (begin|kept) ", line)
    )
    kept: set[str] = set()
    twice = 0
    for line in lines:
        _, what, key, *_ = line.split()
        twice += what == "begin" and key in kept
        if what == "kept":
            kept.add(key)
    return twice


def differing(
    found: list[dict[str, str]], expected: list[dict[str, str]]
) -> list[tuple[str, str, str, str]]:
    """Return the cells that differ: chain, column, and both values."""
    if len(found) != len(expected):
        return [("all", "rows", str(len(found)), str(len(expected)))]
    return [
        (one["chain"], column, str(one.get(column)), str(other.get(column)))
        for one, other in zip(found, expected, strict=True)
        for column in one.keys() | other.keys()
        if one.get(column) != other.get(column)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        suite = folder / "small.toml"
        suite.write_text(SUITE)
        began = time.monotonic()
        assert run(["bench", str(suite), "--out", str(folder / "undisturbed")]) == 0
        duration = time.monotonic() - began
        expected = rows(folder / "undisturbed")
        counts: collections.Counter[str] = collections.Counter()
        done = kills = unequal = twice = failed = 0
        leftovers = {1.0: 0, 4.0: 0}
        told: list[tuple[str, str, str, str]] = []
        while kills < options.kills or done == 0:
            out = folder / f"run-{done}"
            words_ = command("bench", str(suite), "--out", str(out))
            while True:
                process = subprocess.Popen(
                    words_, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                if kills >= options.kills:
                    process.wait()
                    break
                try:
                    process.wait(chance.uniform(0, duration))
                    break  # it was faster
                except subprocess.TimeoutExpired:
                    pass  # it still runs: now it is killed
                target = chance.choice(TARGETS)
                before = family(process.pid)
                for pid in victims(process.pid, target):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                kills += 1
                counts[target] += 1
                if target in ("the run", "all at once"):
                    process.wait()
                    for seconds in leftovers:
                        time.sleep(seconds)
                        leftovers[seconds] += sum(alive(pid) for pid in before)
                    continue
                # The run goes on without what was killed; a row that failed comes next time.
                if process.wait() == 0:
                    break
                failed += 1
            if kills >= options.kills and run(["bench", str(suite), "--out", str(out)]) != 0:
                unequal += 1
            done += 1
            other = differing(rows(out), expected)
            unequal += bool(other)
            told += other
            twice += computed_twice(out)
            publish(  # after every run, so that a proof that is cut short still counts
                options.out / "kills.md",
                "kill -9 at random moments",
                [
                    table(("killed", "times"), [(target, counts[target]) for target in TARGETS]),
                    table(
                        ("what", "count"),
                        [
                            ("kills", kills),
                            ("runs brought to their end", done),
                            ("runs with a failed row, which were started again", failed),
                            ("runs whose rows differ from the undisturbed one's", unequal),
                            ("results computed again although they were kept", twice),
                            ("processes that outlived their run by a second", leftovers[1.0]),
                            ("processes that outlived their run by five seconds", leftovers[4.0]),
                        ],
                    ),
                    f"An undisturbed run took {duration:.1f} s. Rows are compared in all columns"
                    " but timings, notes on them, seconds and peak memory.\n",
                    *([table(("chain", "column", "found", "undisturbed"), told)] if told else []),
                ],
                "python benchmarks/robustness/kills.py --out reports/robustness"
                f" --kills {options.kills}",
            )


if __name__ == "__main__":
    main()
