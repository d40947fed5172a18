"""A search that is killed, then stopped: the best so far stays, nothing is computed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from compress.recommender.measured import Notebook
from compress.system.files import sha256_file

BEGIN = [
    *("--data", "digits", "--model", "mlp(width=32)", "--baseline", "train(epochs=2)"),
    *("--max-drop", "10", "--by", "size", "--step-threads", "1", "--threads", "1"),
    *("--timing-seconds", "0.5", "--budget", "20m"),
]
SPACE = (
    "only = ['prune_weights', 'finetune', 'quantize']\n"
    "[prune_weights]\nsparsity = [0.2, 0.3, 0.4, 0.5, 0.6]\n"
    "[finetune]\nepochs = 1\nlearning_rate = 0.001\n[quantize]\nmax_drop = 'none'\n"
)


def kept(out: Path) -> Counter[str]:
    """Return how often each result was kept, by the logs of the processes of steps."""
    logs = [*out.glob("search/logs/*.log"), *out.glob("finalists/logs/*.log")]
    lines = [line for log in logs for line in log.read_text().splitlines() if " kept " in line]
    return Counter(line.split(" kept ")[1].split()[0] for line in lines)


def ended(command: list[str], out: Path, log: Path, trials: int, how: signal.Signals) -> int:
    """End a search by a signal once it has so many trials; return its status."""
    # A background shell has SIGINT ignored.
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        for _ in range(5000):
            done = len(Notebook.read(out / "trials.jsonl").trials)
            if done >= trials or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        if how == signal.SIGINT:
            process.send_signal(how)
        else:
            os.killpg(process.pid, how)
        status = process.wait(120)
    return status


def test_the_best_so_far_outlives_the_end_of_its_search(tmp_path: Path) -> None:
    """Killed, gone on with, and stopped: in processes, since other tests bring techniques here."""
    out, space, log = tmp_path / "best", tmp_path / "space.toml", tmp_path / "log"
    space.write_text(SPACE)
    command = [sys.executable, "-m", "compress", "recommend", str(out)]
    begin = [*command, *BEGIN, "--space", str(space)]
    assert ended(begin, out, log, 2, signal.SIGKILL) == -signal.SIGKILL
    first = json.loads((out / "best.json").read_text())
    assert first["sha256"] == sha256_file(out / "model.onnx")
    assert "So far" in (out / "recommendation.md").read_text()
    before = Notebook.read(out / "trials.jsonl").trials
    spent = json.loads((out / "search.json").read_text())["spent"]
    assert spent > 0
    lines = (out / "trials.csv").read_text().splitlines()[1:]
    assert len(lines) in (len(before), len(before) - 1)  # killed between the two

    again = [*command, "--budget", "20m"]
    assert ended(again, out, log, len(before) + 1, signal.SIGINT) == 130
    after = Notebook.read(out / "trials.jsonl").trials
    assert after[: len(before)] == before
    assert set(kept(out).values()) == {1}
    best = json.loads((out / "best.json").read_text())
    assert best["sha256"] == sha256_file(out / "model.onnx")
    assert {first["chain"], best["chain"]} <= {one.chain for t in after for one in t.measured}
    assert json.loads((out / "search.json").read_text())["spent"] > spent
    assert len((out / "trials.csv").read_text().splitlines()[1:]) == len(after)
    report = " ".join((out / "recommendation.md").read_text().split())
    assert f"The search ended: it was stopped. {len(after)} trials" in report
    said = " ".join(log.read_text().split())
    assert f"points. {out / 'model.onnx'}: {best['chain']} Stopped." in said
