"""One model, one technique, one share: what comes out of it, check by check."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from plain import LIMIT, least, limited, plain
from references import composed, masked
from subjects import SETTLED_BY, Subject, settle, subject

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.deploy.verify import verification_items, verify
from compress.model import Model, forward, load, save
from compress.tasks.base import Tensors, TensorSplit
from compress.techniques import chain

PRUNE, HEADS, FACTORIZE = "prune_channels", "prune_channels of whole heads", "factorize"
STEPS = {
    PRUNE: "prune_channels(channels={}, calibration=0)",
    HEADS: "prune_channels(channels={}, heads='fewer', calibration=0)",
    FACTORIZE: "factorize(macs={}, calibration=32)",
}
EQUAL = 1e-6
"""Of the largest output, in float64."""
TRAINED, CALIBRATED = 8, 32
"""Items."""
AGREES = 0.5
"""The least correlation of an int8 file's logits with the float module's: one that computes
something else has about 0. How close int8 comes is another question, which random weights, whose
rounding grows from layer to layer, do not answer."""
CHECKS_SINCE = 2
"""Grows where what a check asks for, or how Torch-Pruning is called, changes."""
LEAST = 0.01
"""Of every group of channels: what can go at most, in steps of 8."""


def tried(name: str, technique: str, keeps: float, files: bool = True) -> dict[str, Any]:
    """Return the row of a model; whatever fails is said in it. `files`: whether it is exported."""
    warnings.simplefilter("ignore")
    given = subject(name, technique == FACTORIZE)
    model = given.model
    row: dict[str, Any] = {"px": given.raw.shape[-1], "checks": CHECKS_SINCE}
    if technique == PRUNE:
        theirs = plain(model, keeps)
        row |= {"Torch-Pruning": theirs["runs"]}
        row |= {"its MACs": theirs.get("macs"), "its s": theirs.get("s")}
    context, started = _context(given), time.perf_counter()
    with limited(LIMIT):
        result = run(chain(STEPS[technique].format(keeps)), model, context)
    row["s"] = round(time.perf_counter() - started, 1)
    left = {r["layer"]: r["left_alone"] for r in context.log.rows if "left_alone" in r}
    row |= {"reasons": left, "notes": context.log.notes, "left alone": len(left)}
    ours = forward(result.module, model.items())
    row["runs"] = "yes" if ours.shape == forward(model.module, model.items()).shape else "shape"
    macs = counts.macs(result.module, result.example)
    row["MACs kept"] = round(macs / counts.macs(model.module, model.example), 3)
    reference = composed if technique == FACTORIZE else masked
    two = tuple(x[:2] for x in given.inputs)
    row["equals"] = _said(lambda: _equals(reference(model.module, result.module), result, two))
    row["saves"] = _said(lambda: _saves(result))
    row["fine-tunes"] = _said(lambda: _trains(given, result))
    if files:
        row |= _deployed(given, result, macs)
    if technique == PRUNE and keeps == 0.5:
        row["least MACs"] = _said(lambda: _least(given))
        if row["its MACs"] is not None:
            row["its least at 8"] = least(model)
    return row


def _context(given: Subject) -> StepContext:
    def split(count: int) -> TensorSplit:
        return TensorSplit((given.raw[:count],), torch.arange(count) % len(given.task.classes))

    return StepContext(
        given.task, train=split(TRAINED), calibration=split(CALIBRATED), log=StepLog()
    )


def _said(check: Callable[[], Any]) -> Any:
    """Return what a check says, or what it raises."""
    try:
        return check()
    except Exception as error:  # a row says it
        return f"{type(error).__name__}: {error}"[:200]


def _equals(reference: torch.nn.Module, result: Model, inputs: Tensors) -> str:
    doubled = tuple(x.double() for x in inputs)
    expected = forward(reference, doubled)
    ours = forward(copy.deepcopy(result.module).double(), doubled)
    off = float((ours - expected).abs().max() / expected.abs().max())
    return "yes" if off < EQUAL else f"off by {off:.2g}"


def _saves(result: Model) -> str:
    with tempfile.TemporaryDirectory() as folder:
        save(result, Path(folder), Subject.build)
        again = load(Path(folder), Subject.build)
    one, other = (forward(each, result.probe) for each in (again.module, result.module))
    return "yes" if torch.equal(one, other) else "differs"


def _deployed(given: Subject, result: Model, macs: int) -> dict[str, Any]:
    # As after any recovery: else a deep random net that lost channels answers all items alike.
    settle(result.module, tuple(x[:SETTLED_BY] for x in given.inputs))
    file = _said(lambda: export(result))
    if not isinstance(file, bytes):
        return {"exports": file, "file agrees": "", "quantizes": ""}
    agrees = _said(lambda: _agrees(given, result, file, macs))
    return {"exports": "yes", "file agrees": agrees, **_quantizes(given, result, file)}


def _agrees(given: Subject, result: Model, file: bytes, macs: int) -> str:
    few = max(64, verification_items(macs, lowered=False))
    inputs = tuple(x[:few] for x in given.inputs)
    verdict = verify(file, result, inputs, lowered=False, macs=macs)
    return "yes" if verdict.ok else verdict.reason


def _trains(given: Subject, result: Model) -> str:
    """One step of training on one batch: what the logits depend on and is not frozen changes."""
    text = f"finetune(epochs=1, batch_size={TRAINED})"
    trained = run(chain(text), result, _context(given))
    before = dict(result.module.named_parameters())
    after = dict(trained.module.named_parameters())
    used = {id(one) for one in counts.deployed(trained.module, trained.example)}
    unmoved = [
        name
        for name, one in after.items()
        if one.requires_grad and id(one) in used and torch.equal(one, before[name])
    ]
    moved = [n for n, p in after.items() if not torch.equal(p, before[n])]
    thawed = [n for n in moved if not before[n].requires_grad]
    if thawed or not moved:
        return f"frozen {thawed[0]} moved" if thawed else "nothing moved"
    return f"{len(unmoved)} did not move, such as {unmoved[0]}" if unmoved else "yes"


def _quantizes(given: Subject, result: Model, file: bytes) -> dict[str, Any]:
    together = _said(lambda: _int8(given, result, file))
    if isinstance(together, str):
        return {"quantizes": together}
    said = "yes" if together >= AGREES else f"correlates by {together:.2f}"
    return {"quantizes": said, "int8 r": round(together, 2)}


def _int8(given: Subject, result: Model, file: bytes) -> float:
    """Return the correlation of an int8 file's logits with the module's, over items."""
    text = f"quantize(calibration={CALIBRATED}, seconds=0, max_drop=None)"
    # The step exports as well: the same file, and on large nets most of the time.
    with mock.patch("compress.techniques.quantize.export", return_value=file):
        lowered = run(chain(text), result, _context(given))
    assert lowered.onnx is not None
    runner = session(lowered.onnx)
    expected = forward(result.module, given.inputs).numpy()
    logits = predict(runner, [given.inputs])
    alone = predict(runner, [tuple(x[:1] for x in given.inputs)])
    if logits.shape != expected.shape or alone.shape != expected[:1].shape:
        raise ValueError(f"outputs of shape {logits.shape}, of one item {alone.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("outputs that are not finite")
    ours, theirs = (x - x.mean(0) for x in (logits, expected))
    return float((ours * theirs).sum() / np.sqrt((ours**2).sum() * (theirs**2).sum()))


def _least(given: Subject) -> float:
    """Return the share of MACs that stays where all goes that can, in steps of 8."""
    context = replace(_context(given), log=StepLog())
    result = run(chain(STEPS[PRUNE].format(LEAST)), given.model, context)
    macs = [counts.macs(one.module, one.example) for one in (result, given.model)]
    return round(macs[0] / macs[1], 3)
