"""From a built model to a record: deploy, verify, count, and see how often it is right.

A row's relation to others (its place in the run's folder, its difference to the baseline, its
control) is not known here: a model is measured once for all runs.
"""

from __future__ import annotations

import csv
import gzip
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress import counts
from compress.benchmark.measure.accuracy import Answered, measure_answers
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.provenance import full_chain, metadata, preprocessing_hash, split_hash
from compress.benchmark.plan.rows import Row
from compress.benchmark.store import outputs
from compress.context import StepLog
from compress.deploy.export import export, stamp
from compress.deploy.stored import stored
from compress.deploy.verify import Verification, pass_batch, verification_items, verify
from compress.deploy.versions import oldest_runtime, with_opset
from compress.errors import CannotSave
from compress.heads import heads_of
from compress.model import Model, save
from compress.results.accuracy import WEIGHTS
from compress.results.raw import write_arrays
from compress.results.record import COUNTS, EXECUTION, Record
from compress.system.environment import cpu_info
from compress.system.files import sha256, write_atomic
from compress.system.progress import stage
from compress.tasks.base import other_lengths, spaced, stacked_inputs
from compress.timing.executed import executed

EXECUTED = ("int8_convs", "float_convs", "int8_matmuls", "float_matmuls", "qdq_nodes")
"""Columns that `compress.timing.executed` fills."""
FIRST = ("step", "layer", "node", "type", "int8")
"""Columns with which `layers.csv` begins."""


@dataclass(frozen=True)
class Built:
    """A chain's result: the model, its key in the store, its log."""

    model: Model
    key: str
    log: StepLog


@dataclass
class Measured:
    """A record on its way."""

    figures: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)


def measure_row(plan: Plan, folder: Path, row: Row, seed: int, built: Built) -> Record:
    """Deploy a built model into a folder and measure it there.

    The folder gets `model.onnx` (or `unverified.onnx`), `model.safetensors` and `blueprint.json`
    where the model can be saved, and `answers.npz`; of a baseline also `targets.npz`.
    """
    started, computed = time.perf_counter(), time.process_time()
    model, task = built.model, plan.data.task
    # The file's metadata is written before it is verified, hashed and timed.
    with stage("writing the ONNX file"):
        content = _file(plan, model, metadata(plan, row, seed))
        counted = counts.count(model.module, model.example)
        # Test items: int8 ranges were fitted to the calibration split, so it would flatter them.
        items = verification_items(counted.macs, model.lowered)
        inputs = stacked_inputs(task, plan.data.test, items)
        others = other_lengths(task, plan.data.test)
    gzipped = _gzipped_meanwhile(content)
    path = folder / outputs.UNVERIFIED
    write_atomic(path, content)
    answers = _Answers(plan, path, pass_batch(counted.macs))
    # Items of a batch are padded to its longest, so not alike in both passes.
    shared = None if task.ragged else partial(answers.logits, items)
    given = (content, model, inputs, model.lowered, others, counted.macs, shared)
    verdict = verify(*given, unit=task.unit)
    if verdict.ok:
        answers.path = path = path.rename(folder / outputs.DEPLOYABLE)
    if code := task.script():
        write_atomic(folder / outputs.SCRIPT, code.encode())
    if table := _layers(built.log.rows):
        write_atomic(folder / outputs.LAYERS, table.encode())
    measured = Measured(notes=list(built.log.notes), log=list(built.log.rows))
    measured.hashes |= {"onnx": sha256(content), "key": built.key}
    if row.chain is None and plan.baseline is None:
        [classes] = task.output_shape()
        measured.log.append({"kind": WEIGHTS, "classes": classes, "promised": plan.promised})
    with stage("saving the model, counting its operations and bytes"):
        measured.notes += _save(plan, row, model, folder)
        _count(model, counted, content, gzipped.result(), measured)
    _answer(plan, folder, row, answers, verdict, measured)
    _execute(path, [tensor[:1].numpy() for tensor in inputs], plan.threads, measured)
    if np.isfinite(verdict.max_abs_error):
        measured.figures["top1_agreement"] = float(verdict.top1_agreement)
        measured.figures["max_abs_error"] = float(verdict.max_abs_error)
    steps = float(sum(line["seconds"] for line in built.log.rows if line["kind"] == "step"))
    measured.figures |= {"train_samples": built.log.samples, "seconds": round(steps, 3)}
    taken = {
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - computed, 3),
    }
    return Record(
        row.text,
        seed,
        "ok" if verdict.ok else "unverified",
        measured.figures,
        error=verdict.reason,
        notes=tuple(measured.notes),
        missing=measured.missing,
        hashes=measured.hashes,
        log=(*measured.log, {"kind": "measuring", **taken}),
    )


def _file(plan: Plan, model: Model, about: Mapping[str, str]) -> bytes:
    """Return a model's ONNX file, in the suite's opset, with its metadata."""
    content = model.onnx or export(model)
    if plan.suite.opset is not None:
        content = with_opset(content, plan.suite.opset)
    oldest = oldest_runtime(onnx.load_from_string(content))
    return stamp(content, {**about, "onnxruntime": f">={oldest}"} if oldest else about)


def _gzipped_meanwhile(content: bytes) -> Future[int]:
    """Return the bytes that a file takes gzipped, which one core finds while others verify it."""
    beside = ThreadPoolExecutor(1, thread_name_prefix="gzip")
    size = beside.submit(lambda: len(gzip.compress(content, compresslevel=6, mtime=0)))
    beside.shutdown(wait=False)
    return size


def _layers(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what the steps say of each layer, as CSV; '' if they say nothing."""
    found: list[dict[str, Any]] = []
    pending: list[Mapping[str, Any]] = []
    for row in rows:  # a step's own row comes after those of its layers
        if row["kind"] == "layer":
            pending.append(row)
        elif row["kind"] == "step":
            found += [{"step": row["step"], **one} for one in pending]
            pending = []
    columns = dict.fromkeys(key for one in found for key in one if key != "kind")
    # A log that comes from the store has its keys in alphabetical order.
    columns = dict.fromkeys([one for one in FIRST if one in columns]) | columns
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue() if found else ""


def _save(plan: Plan, row: Row, model: Model, folder: Path) -> list[str]:
    """Save the model so that a Python user can load it; return notes where that is impossible."""
    if plan.instance is not None:
        return ["the model was passed as a module: the ONNX file is the only artifact"]
    chain, task = full_chain(plan, row), plan.data.task.describe()
    about = {"task": task, "chain": chain, "lowered": model.lowered}
    try:
        # The file that is deployed lies there already, stamped.
        save(replace(model, onnx=None), folder, plan.build, about)
    except CannotSave as error:
        return [f"the ONNX file is the only artifact: {error}"]
    return []


def _count(
    model: Model, counted: counts.Counts, onnx: bytes, gzip_bytes: int, measured: Measured
) -> None:
    measured.figures |= {
        "params": counted.params,
        "nonzero_params": counted.nonzero_params,
        "macs": counted.macs,
        "onnx_bytes": len(onnx),
        "gzip_bytes": gzip_bytes,
    }
    about: dict[str, Any] = {"uncounted": dict(counted.uncounted)}
    if left_out := counts.may_hold_products(counted.uncounted):
        about["left_out"] = left_out
    if counted.unused_params:
        about["unused_params"] = counted.unused_params
    measured.log.append({"kind": COUNTS, **about})
    if (heads := heads_of(model.module)) is not None and heads.note:
        measured.notes.append(heads.note)
    if model.sparse:
        measured.figures["sparse_tensors"] = len(model.sparse)
    measured.figures |= stored(onnx) if model.lowered else {"precision": "float32"}


def _execute(path: Path, inputs: Sequence[np.ndarray], threads: int, measured: Measured) -> None:
    """Note what onnxruntime executes for one item."""
    try:
        run = executed(path, inputs, threads)
    except Exception as error:
        # Whether the file is sound was verified; these columns are not worth the row.
        reason = f"what the file executes is not known: {type(error).__name__}: {error}"
        measured.missing |= dict.fromkeys((*EXECUTED, "int8_macs_share"), reason)
        return
    measured.figures |= {name: getattr(run, name) for name in EXECUTED}
    measured.figures |= {"int8_macs": run.int8_macs, "executed_macs": run.macs}
    about = {"operators": dict(run.operators), "cpu_flags": list(cpu_info()[1])}
    measured.log.append({"kind": EXECUTION, "macs": run.macs, **about})


@dataclass
class _Answers:
    """The answers of a file to all test items, in one pass for verification and accuracy."""

    plan: Plan
    path: Path
    batch: int
    known: Answered | None = None

    def get(self) -> Answered:
        if self.known is None:
            data, plan = self.plan.data, self.plan
            self.known = measure_answers(
                self.path, data.task, data.test, plan.threads, self.batch, plan.metric
            )
        return self.known

    def logits(self, count: int) -> np.ndarray:
        """Return those of `count` items, evenly spaced, as `stacked_inputs` takes them."""
        logits = self.get().logits
        return logits[spaced(count, len(logits)).numpy()]


def _answer(
    plan: Plan, folder: Path, row: Row, made: _Answers, verdict: Verification, measured: Measured
) -> None:
    """Run the file on all test items; one that failed verification, if it runs at all."""
    data = plan.data
    try:
        answers = made.get()
    except Exception as error:
        if verdict.ok:
            raise
        measured.missing["accuracy"] = f"the file does not run: {error}"
        return
    measured.figures |= answers.figures
    measured.missing |= answers.missing
    measured.hashes["split"] = split_hash(data, answers.arrays["targets"])
    measured.hashes["preprocessing"] = preprocessing_hash(data)
    # The expected outputs while it is timed, so that it is only run in limited processes.
    timed = {outputs.TIMED: answers.logits[spaced(outputs.SAMPLES, len(answers.logits))]}
    measured.hashes["answers"] = write_arrays(folder / outputs.ANSWERS, {**answers.arrays, **timed})
    if row.chain is None:
        write_arrays(folder / outputs.TARGETS, {"targets": answers.arrays["targets"]})
