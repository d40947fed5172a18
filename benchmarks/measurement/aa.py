"""A/A: how often a file is called faster or slower than a copy of itself.

    python benchmarks/measurement/aa.py --out reports/measurement [--load] [--pairs 200]

Every pair is a timing of its own as a user would get it: fresh processes, a control, a margin.
`--load` keeps one core busy with another process all the while.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import SMALL_TO_LARGE, Network, by_name
from trials import Trial, outcome, publish, run_trials, share, table

from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.summary import summarise

SECONDS = 6.0
CLAIMS = ("faster", "slower")
SETTINGS = ("cpu", "cpu", "cpu1", "cpu_batch8")


def once(trial: dict[str, Any], networks: dict[str, Network]) -> dict[str, Any]:
    """Time a network against a copy of its file."""
    network, setting = networks[trial["network"]], trial["setting"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.onnx"
        copy.write_bytes(network.path.read_bytes())
        request = TimingRequest(
            {"file": network.path, "copy": copy},
            [network.samples],
            dict.fromkeys(("file", "copy"), network.expected),
            baseline="file",
            settings=(setting,),
            effort=Effort(seconds=SECONDS),
            seed=trial["number"],
        )
        timings = summarise(collect(request), request.seed)
    return outcome(timings, "copy", "file", setting)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with a process that counts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rows(found: list[Trial]) -> Iterator[list[object]]:
    groups = {
        name: [t["found"] for t in found if t["trial"]["network"] == name]
        for name in SMALL_TO_LARGE
    }
    groups |= {
        setting: [t["found"] for t in found if t["trial"]["setting"] == setting]
        for setting in dict.fromkeys(SETTINGS)
    }
    for name, group in {**groups, "all": [t["found"] for t in found]}.items():
        if not group:
            continue
        half = np.array([(f["high"] - f["low"]) / 2 for f in group])
        yield [
            name,
            f"{np.median([f['ms'] for f in group]):.3g}",
            sum(f["verdict"] in CLAIMS for f in group),
            len(group),
            sum(not f["low"] <= 1 <= f["high"] for f in group),
            f"{np.median(half):.2%}",
            f"{np.quantile(half, 0.9):.2%}",
            f"{np.median([f['margin'] for f in group]):.2%}",
            sum(not f["trusted"] for f in group),
            f"{np.median([f['seconds'] for f in group]):.1f}",
        ]


HEAD = (
    *("what", "ms", "claims", "pairs", "1 outside", "± median", "± 90 %", "margin"),
    *("untrusted", "s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--load", action="store_true")
    options = parser.parse_args()
    names = list(SMALL_TO_LARGE)
    wanted = [
        {
            "network": names[i % len(names)],
            "setting": SETTINGS[i // len(names) % len(SETTINGS)],
            "number": i,
        }
        for i in range(options.pairs)
    ]
    what = "aa-load" if options.load else "aa"
    load = busy_core() if options.load else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, load:
        networks = by_name(names, Path(folder))
        path = options.out / f"{what}.jsonl"
        found = run_trials(path, wanted, lambda trial: once(trial, networks))
    claims = sum(t["found"]["verdict"] in CLAIMS for t in found)
    able = [t["found"] for t in found if t["found"]["trusted"]]
    among = sum(f["verdict"] in CLAIMS for f in able)
    outside = sum(not t["found"]["low"] <= 1 <= t["found"]["high"] for t in found)
    command = f"python benchmarks/measurement/aa.py --out reports/measurement --pairs {len(found)}"
    publish(
        options.out / f"{what}.md",
        "A/A: a file against a copy of itself"
        + (", while another process loads one core" if options.load else ""),
        [
            f'False claims of "faster" or "slower": {share(claims, len(found))}.\n',
            f"Among the runs that trusted themselves: {share(among, len(able))}.\n",
            f"Pairs whose 95 % interval leaves out 1: {share(outside, len(found))}.\n",
            table(HEAD, rows(found)),
            "claims: verdicts of faster or slower; 1 outside: 95 % intervals that leave out 1 (a"
            " verdict asks for more: the margin); ±: half widths of these intervals; untrusted:"
            " runs that said that their latencies are not to be trusted (a claim must then exceed 5"
            " % and the control's own interval); s:"
            f" seconds for a pair (budget {SECONDS:.0f}).\n",
        ],
        command + (" --load" if options.load else ""),
    )


if __name__ == "__main__":
    main()
