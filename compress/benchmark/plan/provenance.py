"""The description of a run and of the machine, and the metadata of every file it makes."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.benchmark.plan.keys import versions
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.rows import Row
from compress.system.environment import environment as timing_environment
from compress.system.environment import machine
from compress.system.files import digest, sha256
from compress.tasks.base import Data


def about(plan: Plan, command: str) -> dict[str, Any]:
    """Return what the report needs to know about the run as a whole (JSON)."""
    data = plan.data
    notes = [data.note] if data.note else []
    if plan.baseline is None or not plan.baseline.restarts:
        notes.append("the model came with weights, which may have seen images of any split")
    if plan.ranks > 1:
        notes.append(f"{plan.ranks} processes shared every training, each on a device of its own")
    notes += [f"{name}: {words}" for name, words in plan.weights.items() if name]
    parts = ("train", "validation", "calibration", "test")
    return {
        "suite": plan.suite.name,
        "description": plan.suite.description,
        "data": data.task.name,
        "task": data.task.describe(),
        "fingerprint": data.fingerprint,
        "preprocessing": data.task.input_words(),
        "preprocessing_hash": preprocessing_hash(data),
        "split": {part: len(getattr(data, part)) for part in parts},
        "test_items": len(data.test),
        "model": plan.suite.model,
        "weights": plan.weights.get("", ""),
        "baseline": plan.origin,
        "command": command,
        "metric": "" if plan.metric is None else plan.metric.name,
        "margin": plan.suite.margin,
        "notes": notes,
        "environment": environment(
            plan.threads, str(plan.device), plan.precision, plan.suite.seeds
        ),
    }


def preprocessing_hash(data: Data) -> str:
    """Return a hash of what is done to an item before a model sees it."""
    return digest(data.task.describe().get("preprocessing"))


def split_hash(data: Data, targets: np.ndarray) -> str:
    """Return a hash of the source's fingerprint and the test split's targets (N,), in order."""
    whole = np.ascontiguousarray(targets, dtype="<i8")
    return digest(
        {"fingerprint": data.fingerprint, "items": len(whole), "targets": sha256(whole.tobytes())}
    )


def full_chain(plan: Plan, row: Row) -> str:
    """Return the chain's text with the baseline's own step in front."""
    first = "" if plan.baseline is None else repr(plan.baseline)
    rest = "" if row.chain is None else row.text
    return " -> ".join(filter(None, (first, rest)))


def metadata(plan: Plan, row: Row, seed: int) -> dict[str, str]:
    """Return what is written into a row's ONNX file; values that are not text are JSON."""
    task = plan.data.task.describe()
    return {
        **plan.data.task.metadata(),
        "task": task["kind"],
        "data": plan.data.task.name,
        "model": plan.suite.model,
        "chain": full_chain(plan, row),
        "seed": str(seed),
        "versions": json.dumps(versions()),
    }


def environment(
    threads: int, device: str, precision: str, seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """Return where and with which seeds a run takes place (JSON): machine, versions, git state.

    Names neither host, user nor path.
    """
    described = {**timing_environment(threads), **machine()}
    if not described["gpu"]:  # where NVIDIA's own tool is missing
        import torch

        if torch.cuda.is_available():
            described["gpu"] = torch.cuda.get_device_name()
    return {
        **described,
        "device": device,
        "precision": precision,
        "seeds": list(seeds),
        "versions": versions(),
        "git": _git_state(),
        "date": datetime.date.today().isoformat(),
    }


def _git_state() -> str | None:
    """Return the commit of our own checkout, with `+` if it has changes; None if there is none."""
    here = Path(__file__).resolve()
    # Installed into a folder of somebody's repository we are not part of it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty=+")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git answers, None if it answers nothing or fails."""
    command = ["git", *arguments]
    try:
        answer = subprocess.check_output(
            command, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip() or None
