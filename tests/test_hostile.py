"""Hostile inputs are refused with a sentence, and nothing of theirs runs. No call home, either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "robustness"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(FOLDER))
    from hostile_inputs import INPUTS, outcome

    for name in ("hostile_inputs", "common", "trials", "installed"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", INPUTS)
def test_it_is_refused_and_not_executed(name: str, tmp_path: Path) -> None:
    good, message = outcome(name, tmp_path)
    assert good, message
    assert "Traceback" not in message
    assert len(message) < 2000


def test_a_random_text_has_no_other_answer_than_the_stated_error() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import random

        from fuzz import PARSERS, text

        from compress.errors import UserError

        chance = random.Random(1)
        ends = {"parsed": 0, "refused": 0}
        for _ in range(1500):
            sample = text(chance)
            for parse in PARSERS.values():
                try:
                    parse(sample)
                except UserError:
                    ends["refused"] += 1
                else:
                    ends["parsed"] += 1
        assert sum(ends.values()) == 1500 * len(PARSERS)
        assert min(ends.values()) > 50, "texts of both kinds"
    for name in ("fuzz", "common", "trials", "installed"):
        sys.modules.pop(name, None)


CLOSED = """
import socket, sys

def refuse(self, address, *_):
    print("CALLED", address, file=sys.stderr, flush=True)
    raise OSError("the network is closed")

plain = socket.socket.connect
def connect(self, address):
    local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost")
    return plain(self, address) if local else refuse(self, address)

socket.socket.connect = connect
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
"""


def without_network() -> list[str]:
    """Return what starts a command with no network but the loopback, where that is allowed."""
    words = ["unshare", "--net", "--map-root-user"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return words if allowed else []


def test_a_run_needs_no_network_and_calls_nobody(tmp_path: Path) -> None:
    """In Python every connection is refused; where the system allows it there is no network."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOSED)
    words = [*without_network(), sys.executable, "-m", "compress", "run", "--data", "digits"]
    words += ["--model", "mlp(width=8)", "--chain", "train(epochs=2) -> quantize()"]
    words += ["--timings", "cpu", "--timing-seconds", "0.1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "CALLED" not in done.stderr
    assert not any("CALLED" in log.read_text() for log in (tmp_path / "out/logs").glob("*.log"))
