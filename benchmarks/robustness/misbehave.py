"""Plug-ins that misbehave, by their installed names: each one row, all others fine.

    python benchmarks/robustness/misbehave.py --out reports/robustness

And a disk that fills up under a run, which goes on when there is room again. Both need a small
tmpfs to be mounted; where that is not allowed, the parts that need it are left out, and said so.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
from pathlib import Path

from common import SUITE, command, environment, plug_in, publish, rows, run, table
from disks import small_disk
from hostile import HOSTILE

SETTINGS = ["--step-timeout", "15", "--step-memory", "2"]


def plug_ins(folder: Path, disk: Path | None) -> list[tuple[str, ...]]:
    """Run every hostile technique, an honest row before and after."""
    texts = [f"{cls.name()}()" for cls in HOSTILE if cls.__name__ != "FillDisk"]
    texts += [f"fill_disk(place={str(disk)!r})"] if disk is not None else []
    chains = [
        "train(epochs=4) -> quantize()",
        *texts,
        "prune_weights(sparsity=0.5)",
    ]
    words = ["run", "--data", "digits", "--model", "mlp(width=32)", "--timings", "cpu"]
    words += [word for text in chains for word in ("--chain", text)]
    out = folder / "out"
    run(
        [*words, *SETTINGS, "--timing-seconds", "0.5", "--out", str(out)],
        environment(plug_in(folder / "plug-in")),
    )
    with open(out / "results.csv", newline="") as file:
        return [
            (
                row["chain"].replace(str(disk), "DISK"),
                row["status"],
                _short(row["error"], str(disk)),
            )
            for row in csv.DictReader(file)
        ]


def _short(text: str, disk: str) -> str:
    line = " ".join(text.replace(disk, "DISK").replace("|", "/").split())
    return line if len(line) <= 150 else line[:147] + "..."


def full_disk(folder: Path, disk: Path) -> list[tuple[str, object]]:
    """Run a suite on a disk that is too small, make room, and run it again."""
    suite = folder / "small.toml"
    suite.write_text(SUITE)
    out = disk / "out"
    words = command("bench", str(suite), "--out", str(out))
    first = subprocess.run(words, capture_output=True, text=True)
    said = [line for line in first.stderr.splitlines() if "disk is full" in line]
    subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
    second = run(["bench", str(suite), "--out", str(out)])
    plain = run(["bench", str(suite), "--out", str(folder / "plain")])
    return [
        ("exit status on the full disk", first.returncode),
        ("what it said", _short(said[0], str(disk)) if said else "nothing"),
        ("exit status after there was room", second),
        ("rows equal those of an undisturbed run", rows(out) == rows(folder / "plain")),
        ("exit status of that one", plain),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with small_disk(folder / "disk", "8m") as mounted:
            found = plug_ins(folder, folder / "disk" if mounted else None)
        with small_disk(folder / "disk2", "700k") as mounted_too:
            disk = full_disk(folder, folder / "disk2") if mounted_too else []
    parts = [table(("chain", "status", "error"), found)]
    parts += ["A disk that fills up under a run:\n", table(("what", "found"), disk)] if disk else []
    if not (mounted and mounted_too):
        parts.append("No tmpfs could be mounted here: what fills a disk was left out.\n")
    publish(
        options.out / "misbehave.md",
        "Techniques that misbehave",
        parts,
        "python benchmarks/robustness/misbehave.py --out reports/robustness",
    )


if __name__ == "__main__":
    main()
