"""Which architectures do structured pruning and low rank reach, and does plain Torch-Pruning?

    python benchmarks/pruning/coverage.py --out reports/pruning [--seconds 3600] [NAME ...]

Every classifier of torchvision up to 100 million parameters and VGG-11-BN, families of timm, and
small nets of odd kinds (`odd_nets.py`), with random weights that mean something (`subjects.py`), on
smooth noise: `prune_channels(channels=...)` and `factorize(macs=...)` at 0.7 and 0.5, and whole
heads, of nets that have some, at 0.5. Checked are
(`trials.py`): that the result runs, with outputs of the same shape; that in float64 it equals the
original with those channels masked, or with the products of the factors as weights, by means of
this benchmark's own (`references.py`); that it exports and the file agrees; that it saves and loads
equal; that a step of training moves every parameter that the logits depend on; that `quantize()`
makes a file of it whose logits correlate with its own. Files are made after batch norms have been
estimated anew. Beside it the share of MACs that is left, at most and at least, and plain
Torch-Pruning in the same process and with the same limit (`plain.py`). Each row is made by a
process of its own; results are kept at once, and the next run goes on from there. NAMEs are made
anew. `--without-files` leaves out what needs an exported file and takes most of the time; a later
run fills the gaps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from plain import LIMIT
from subjects import WITH_HEADS, names
from trials import AGREES, CHECKS_SINCE, FACTORIZE, HEADS, PRUNE, STEPS, tried

from compress.system.amounts import plural
from compress.system.environment import cpu_info
from compress.system.files import write_atomic

ROW_LIMIT = 6 * LIMIT
"""Seconds of CPU time for a row: both techniques, what can go at most, and the checks."""
OLDER = 96
"""Pixels of the rows that an older script made, which lack some checks."""
RATIOS = (0.5, 0.7)
CHECKS = ("runs", "equals", "exports", "file agrees", "saves", "fine-tunes", "quantizes")
FIGURES = ("int8 r", "MACs kept", "s", "left alone")
PEER = ("least MACs", "Torch-Pruning", "its MACs", "its least at 8", "its s")
Key = tuple[str, str, float]
Row = dict[str, Any]


def answer(key: Key, files: bool, to: Connection) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (ROW_LIMIT, ROW_LIMIT + 10))
    try:
        to.send(tried(*key, files))
    except Exception as error:
        to.send({"runs": f"{type(error).__name__}: {error}"[:300]})


def in_a_process(key: Key, files: bool) -> Row:
    """Make a row in a process of its own, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Path(__file__).stem, "timm", "onnxruntime", "onnxscript"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(key, files, there))
    started = time.perf_counter()
    process.start()
    there.close()
    try:
        found: Row = here.recv()
        process.join()
    except EOFError:
        process.join()
        ended = f"the process ended with code {process.exitcode}"
        late = process.exitcode == -signal.SIGXCPU
        found = {"runs": f"not done within {ROW_LIMIT} s" if late else ended}
    cpu, features = cpu_info()
    seconds = round(time.perf_counter() - started, 1)
    about = {"seconds": seconds, "cpu": f"{cpu} ({', '.join(features)})"}
    return {**dict(zip(("model", "technique", "keeps"), key, strict=True)), **found, **about}


def rows_of(kept: Path) -> dict[Key, Row]:
    """Return the rows so far, the last of each key."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    rows = map(json.loads, lines)
    return {(row["model"], row["technique"], row["keeps"]): row for row in rows}


def complete(row: Row) -> bool:
    """Whether a row has all checks, or says why it has none."""
    if not row:
        return False
    return row["runs"] != "yes" or all(check in row for check in CHECKS)


def table(columns: Iterable[str], rows: Iterable[Row]) -> list[str]:
    columns = list(columns)
    body = [[str(row.get(one, "")).replace("|", "/") for one in columns] for row in rows]
    body = [["" if cell == "None" else cell for cell in line] for line in body]
    return ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *body)]


def passed(rows: list[Row], check: str) -> str:
    tried = [row[check] for row in rows if check in row]
    missing = len(rows) - len(tried)
    return f"{tried.count('yes')} of {len(tried)}" + (f" ({missing} not tried)" if missing else "")


def verdict(row: Row) -> str:
    """Return 'whole', 'all', 'what was tried' or 'failed', by the checks of a row."""
    if row.get("MACs kept") == 1:
        return "whole"
    found = {row.get(check) for check in CHECKS}
    if found == {"yes"}:
        return "all"
    return "what was tried" if found == {"yes", None} else "failed"


def summary(technique: str, rows: list[Row]) -> list[str]:
    models = WITH_HEADS if technique == HEADS else names()
    verdicts = [verdict(row) for row in rows]
    lines = [
        f"{len({row['model'] for row in rows})} of {len(models)} models, "
        f"{plural(len(rows), 'row')}: "
        f"{verdicts.count('all')} pass all {len(CHECKS)} checks, "
        f"{verdicts.count('what was tried')} pass those that were tried and lack others, "
        f"{verdicts.count('failed')} fail one, {verdicts.count('whole')} stay whole.",
        ", ".join(f"{check} {passed(rows, check)}" for check in CHECKS) + ".",
    ]
    if whole := [f"{row['model']} ({row['keeps']})" for row in rows if row.get("MACs kept") == 1]:
        lines.append(f"Whole, so that their checks say nothing: {', '.join(whole)}.")
    if older := sorted({row["model"] for row in rows if row.get("px") == OLDER}):
        lines.append(f"Of an older script, at {OLDER} px: {', '.join(older)}.")
    if first := sum(row.get("checks", 1) < CHECKS_SINCE for row in rows):
        lines.append(
            f"{plural(first, 'row')} of them: from before `fine-tunes` asked every parameter to "
            f"move: half was enough."
            + (" Torch-Pruning was not told the heads of attention then." * (technique == PRUNE))
        )
    if technique == PRUNE:
        said = [str(row.get("Torch-Pruning")) for row in rows]
        late = sum("not done within 20 s" in one for one in said)
        lines += [
            f"Plain Torch-Pruning runs: {said.count('runs')} of {len(rows)}. {late} of its rows "
            f"are of a script that stopped it after 20 s; both have {LIMIT} s of CPU time now."
        ]
    return lines


MEANINGS = [
    "*not tried*: the row is of a run without that check. `equals`: in float64, to the original "
    "with these channels masked, or with the product of the factors as weights. `exports`, `file "
    "agrees` and `quantizes` are of the net after its batch norms have been estimated anew, as "
    "after any training: else a deep random net that lost channels answers all items alike. "
    "`quantizes`: an int8 file is made with no bound on what it may lose, runs for one item and "
    f"many, and its logits correlate with the net's by at least {AGREES} (`int8 r`); how close "
    "int8 comes is not asked of random weights. `s` and `its s`: seconds. `least MACs`: at 1 % of "
    "the channels, in steps of 8; `its least at 8`: the least that Torch-Pruning leaves at any of "
    "several shares, in the same steps.",
    "",
    "Torch-Pruning gets the heads of attention as in its example for timm, which also replaces "
    "attention's forward; that is not done here.",
    "",
]


def write(known: dict[Key, Row], out: Path) -> None:
    lines = ["# What structured pruning and low rank reach", "", *MEANINGS]
    every: tuple[tuple[str, tuple[str, ...]], ...] = ((PRUNE, PEER), (HEADS, ()), (FACTORIZE, ()))
    for technique, more in every:
        keys = [(name, technique, keeps) for name in names() for keeps in sorted(RATIOS)]
        rows = [known[key] for key in keys if key in known]
        lines += [f"## `{STEPS[technique].format('...')}`", ""]
        if not rows:
            lines += ["Not run yet.", ""]
            continue
        lines += [*summary(technique, rows), ""]
        shown = [{**dict.fromkeys(CHECKS, "not tried"), **row} for row in rows]
        lines += [*table(("model", "keeps", "px", *CHECKS, *FIGURES, *more), shown), ""]
    cpus = sorted({row["cpu"] for row in known.values()})
    lines += [*(f"On {cpu}." for cpu in cpus), ""]
    lines += ["`python benchmarks/pruning/coverage.py --out reports/pruning` gives it.", ""]
    write_atomic(out / "coverage.md", "\n".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--without-files", action="store_true")
    parser.add_argument("--technique", action="append", choices=tuple(STEPS))
    parser.add_argument("--keeps", action="append", type=float, choices=RATIOS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, started = options.out / "coverage.jsonl", time.perf_counter()
    models = options.names or names()
    techniques = options.technique or (PRUNE, HEADS, FACTORIZE)
    keys = [(m, t, k) for k in options.keeps or RATIOS for m in models for t in techniques]
    if options.without_files:
        keys = [(m, t, k) for k in options.keeps or RATIOS for t in techniques for m in models]
    keys = [key for key in keys if key[1] != HEADS or (key[0] in WITH_HEADS and key[2] == 0.5)]
    for key in keys:
        row = rows_of(kept).get(key, {})
        if (complete(row) or (row and options.without_files)) and not options.names:
            continue
        if time.perf_counter() - started > options.seconds:
            break
        row = in_a_process(key, not options.without_files)
        print(
            {one: row.get(one) for one in ("model", "technique", "keeps", *CHECKS, "seconds")},
            flush=True,
        )
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
    write(rows_of(kept), options.out)


if __name__ == "__main__":
    main()
