"""A whole search that Ctrl-C stops: the best so far stays, and nothing is computed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_best_so_far_outlives_the_end_of_its_search(tmp_path: Path, how: int) -> None:
    out, space = tmp_path / "best", tmp_path / "space.toml"
    space.write_text(SPACE)
    command = [sys.executable, "-m", "compress", "recommend", str(out), *BEGIN]
    # A background shell has SIGINT ignored.
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--space", str(space)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        for _ in range(5000):
            if len(Notebook.read(out / "trials.jsonl").trials) > 1 or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        if how == signal.SIGINT:
            process.send_signal(how)
        else:
            os.killpg(process.pid, how)
        status = process.wait(120)
    assert status == (130 if how == signal.SIGINT else -how)
    best = json.loads((out / "best.json").read_text())
    assert best["sha256"] == sha256_file(out / "model.onnx")
    assert "So far" in (out / "recommendation.md").read_text()
    before = Notebook.read(out / "trials.jsonl").trials
    spent = json.loads((out / "search.json").read_text())["spent"]
    assert spent > 0
    lines = (out / "trials.csv").read_text().splitlines()[1:]
    if how == signal.SIGINT:
        assert len(lines) == len(before)
        report = " ".join((out / "recommendation.md").read_text().split())
        assert f"The search ended: it was stopped. {len(before)} trials" in report
        said = " ".join((tmp_path / "log").read_text().split())
        assert f"points. {out / 'model.onnx'}: {best['chain']} Stopped." in said
        return  # to resume is the same, and takes long
    assert len(lines) in (len(before), len(before) - 1)  # killed between the two
    # In a process of its own: other tests may have brought techniques to this one.
    resume = [sys.executable, "-m", "compress", "recommend", str(out), "--budget", "20m"]
    resume += ["--trials", str(len(before) + 1)]
    done = subprocess.run(resume, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = Notebook.read(out / "trials.jsonl").trials
    assert after[: len(before)] == before
    assert best["chain"] in {one.chain for trial in after for one in trial.measured}
    assert set(kept(out).values()) == {1}
