"""How long does a user wait for the first row, and where do the seconds go?

    python benchmarks/measurement/first_row.py --out reports/measurement [--runs 7]
        [--beside CHECKOUT --python INTERPRETER]

`run` on digits with one trivial chain, from the start of the command until the baseline's row is in
`results.jsonl`, in fresh folders; and when each stage begins, as the progress says it. `--beside`
takes turns with another checkout of this project, run by an interpreter that may have other
packages (an old checkout may not know today's entry points).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from compress.system.environment import cpu_info
from compress.system.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
CHAIN = "train(epochs=1) -> prune_weights(sparsity=0.5)"
WORDS = ("run", "--data", "digits", "--model", "mlp", "--chain", CHAIN, "--out")
LIMIT = 120.0


def waited(root: Path, interpreter: str) -> tuple[float, dict[str, float]]:
    """Return the seconds until the first row, and until each stage that was announced."""
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "out"
        started = time.perf_counter()
        process = subprocess.Popen(
            [interpreter, "-m", "compress", *WORDS, str(out)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                words = re.sub(r"^\d+:\d+\s+", "", line.strip())
                stages.setdefault(words, time.perf_counter() - started)

        threading.Thread(target=listen, daemon=True).start()
        results = out / "results.jsonl"
        while '"kind": "row"' not in (results.read_text() if results.exists() else ""):
            if process.poll() is not None or time.perf_counter() - started > LIMIT:
                raise SystemExit(f"there was no row: {list(stages)[-1:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return seconds, {words: at for words, at in stages.items() if at <= seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    parser.add_argument("--python", default=sys.executable, help="interpreter for --beside")
    options = parser.parse_args()
    begins: dict[str, list[float]] = {}
    waited(ROOT, sys.executable)  # fills the caches of files and of compiled modules
    if options.beside:
        waited(options.beside, options.python)
    seconds, others = [], []
    for _ in range(options.runs):
        if options.beside:
            others.append(waited(options.beside, options.python)[0])
        taken, stages = waited(ROOT, sys.executable)
        seconds.append(taken)
        for words, at in stages.items():
            begins.setdefault(words, []).append(at)
    ratios = [one / other for one, other in zip(seconds, others, strict=False)]
    lines = [
        "# The first row",
        "",
        f"It came after {statistics.median(seconds):.2f} s (median of {len(seconds)} runs, "
        f"{min(seconds):.2f} to {max(seconds):.2f}).",
        "",
        "Stages begin at (medians):",
        "",
        "| stage | s |",
        "| - | -: |",
    ]
    if others:
        revision = subprocess.run(
            ["git", "-C", str(options.beside), "log", "-1", "--format=%h of %as"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        lines.insert(
            3,
            f"In turns with it, checkout {revision}: {statistics.median(others):.2f} s "
            f"({min(others):.2f} to {max(others):.2f}); today's takes "
            f"{statistics.median(ratios):.2f} of that ({min(ratios):.2f} to {max(ratios):.2f}).",
        )
    known = {words: v for words, v in begins.items() if len(v) > options.runs // 2}
    for words, values in sorted(known.items(), key=lambda one: statistics.median(one[1])):
        lines.append(f"| {words} | {statistics.median(values):.2f} |")
    cpu, features = cpu_info()
    lines += ["", f"On {cpu} ({', '.join(features)}).", ""]
    command = "python benchmarks/measurement/first_row.py --out reports/measurement"
    command += f" --runs {options.runs}"
    command += " --beside CHECKOUT --python INTERPRETER" if others else ""
    lines.append(f"This gives it: `{command}`")
    page = "\n".join(lines) + "\n"
    write_atomic(options.out / "first_row.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
