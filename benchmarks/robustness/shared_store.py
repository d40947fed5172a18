"""Two runs on one store at the same time; damaged entries; a run that is stopped by Ctrl-C.

python benchmarks/robustness/shared_store.py --out reports/robustness
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import SUITE, command, publish, rows, run, table
from kills import computed_twice


def two(folder: Path, suite: Path, expected: list[dict[str, str]]) -> list[tuple[str, object]]:
    """Start two runs of one suite on one store; each result must be computed by one of them."""
    store, outs = folder / "both", [folder / "one", folder / "two"]
    words = [command("bench", str(suite), "--store", str(store), "--out", str(out)) for out in outs]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(one, **quiet) for one in words]  # type: ignore[call-overload]
    codes = [process.wait() for process in started]
    logs = folder / "logs-of-both"
    (logs / "logs").mkdir(parents=True)
    for number, out in enumerate(outs):
        for log in (out / "logs").glob("*.log") if (out / "logs").exists() else ():
            (logs / "logs" / f"{number}-{log.name}").write_bytes(log.read_bytes())
    begun = sum(
        " begin " in line
        for log in (logs / "logs").glob("*.log")
        for line in log.read_text(errors="replace").splitlines()
    )
    kept = sum(1 for path in store.iterdir() if len(path.name) == 64)
    return [
        ("two runs at once: exit statuses", codes),
        ("two runs at once: rows equal the undisturbed run's", [rows(o) == expected for o in outs]),
        (
            "two runs at once: results kept (one is what the teacher said), begun by either",
            (kept, begun),
        ),
        ("two runs at once: computed again although kept", computed_twice(logs)),
    ]


def damaged(folder: Path, suite: Path, expected: list[dict[str, str]]) -> list[tuple[str, object]]:
    """Truncate one entry and flip a bit in another, then run again."""
    out = folder / "damaged"
    assert run(["bench", str(suite), "--out", str(out)]) == 0
    entries = sorted(path for path in (out / ".steps").iterdir() if len(path.name) == 64)
    weights = [path / "model.safetensors" for path in entries]
    first, second = [path for path in weights if path.exists()][:2]
    first.write_bytes(first.read_bytes()[:-7])
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1
    second.write_bytes(bytes(content))
    code = run(["bench", str(suite), "--out", str(out)])
    # The rows' own results still stand, so nothing of the steps before them is needed.
    for entry in entries:
        if "answers.npz" in {path.name for path in entry.iterdir()}:
            (entry / "answers.npz").write_bytes(b"")
    again = run(["bench", str(suite), "--out", str(out)])
    aside = sum(1 for _ in (out / ".steps" / "damaged").iterdir())
    return [
        ("a truncated and a bit-flipped entry: exit status", code),
        ("all rows' own entries damaged too: exit status", again),
        ("damaged entries set aside", aside),
        ("rows equal the undisturbed run's", rows(out) == expected),
    ]


def stopped(folder: Path, suite: Path, expected: list[dict[str, str]]) -> list[tuple[str, object]]:
    """Stop a run by Ctrl-C and by SIGTERM, five seconds after its start and later."""
    out, codes = folder / "stopped", []
    for number, seconds in ((signal.SIGINT, 5.0), (signal.SIGTERM, 6.5), (signal.SIGINT, 8.0)):
        words = command("bench", str(suite), "--out", str(out))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(number)
        codes.append(process.wait())
    last = run(["bench", str(suite), "--out", str(out)])
    return [
        ("stopped by Ctrl-C, SIGTERM, Ctrl-C: exit statuses", codes),
        ("run to the end afterwards: exit status", last),
        ("rows equal the undisturbed run's", rows(out) == expected),
        ("computed again although kept", computed_twice(out)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # A shell that starts this in the background has it ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        suite = folder / "small.toml"
        suite.write_text(SUITE)
        assert run(["bench", str(suite), "--out", str(folder / "undisturbed")]) == 0
        expected = rows(folder / "undisturbed")
        found = [
            part for proof in (two, damaged, stopped) for part in proof(folder, suite, expected)
        ]
    publish(
        options.out / "shared-store.md",
        "One store for several runs, and damage to it",
        [table(("what", "found"), found)],
        "python benchmarks/robustness/shared_store.py --out reports/robustness",
    )


if __name__ == "__main__":
    main()
