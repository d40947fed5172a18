"""What a run, and every file it makes, says of itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from compress.bench.plan.keys import versions
from compress.bench.plan.plan import Plan
from compress.bench.plan.rows import Row
from compress.results.record import environment
from compress.system.files import digest, sha256
from compress.tasks.base import Data

MULTIPLICITY = (
    "Verdicts are adjusted for the number of rows: Holm's procedure (1979) at 5 % over all rows "
    "of the table that are compared, for each question by itself (accuracy against the baseline, "
    "accuracy against the control, and each latency)."
)


def about(plan: Plan, command: str) -> dict[str, Any]:
    """Return what the report says about the run as a whole (JSON)."""
    data = plan.data
    notes = [data.note] if data.note else []
    if plan.baseline is None:
        notes.append(
            "the model came with weights, and nobody knows whether they have seen the "
            "validation split"
        )
    parts = ("train", "validation", "calibration", "test")
    return {
        "suite": plan.suite.name,
        "description": plan.suite.description,
        "data": data.task.name,
        "task": data.task.describe(),
        "fingerprint": data.fingerprint,
        "preprocessing_hash": preprocessing_hash(data),
        "split": {part: len(getattr(data, part)) for part in parts},
        "test_items": len(data.test),
        "model": plan.suite.model,
        "baseline": plan.origin,
        "command": command,
        "metric": "" if plan.metric is None else plan.metric.name,
        "multiplicity": MULTIPLICITY,
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
