"""The harness: runs a plan, measures every file beside the baseline's, writes every row."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from compress import counts
from compress.compressor import Journal, run
from compress.deploy.export import export, stamp
from compress.deploy.verify import Verification, verify
from compress.errors import CannotSave, StepFailed, UserError
from compress.files import digest, sha256, write_atomic
from compress.harness.accuracy import Accuracy, logits_of, measure_accuracy
from compress.harness.plan import Plan, Row, weights_hash
from compress.harness.record import Record, RunLog, environment
from compress.harness.store import Store, code_digest, foreign_sources, step_key, versions
from compress.model import Model, save
from compress.task import stacked_inputs
from compress.timing.cuda import Latency, cuda_onnx_latency, cuda_torch_latency
from compress.timing.measure import measure
from compress.timing.result import Timings

VERIFY_ITEMS = 512
TIMING_SAMPLES = 64
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 32


@dataclass(frozen=True)
class Built:
    """What a chain made: the model, its key in the store, its journal."""

    model: Model
    key: str
    journal: Journal
    seconds: float


@dataclass
class Bench:
    """One run of a plan, with its folder of outputs."""

    plan: Plan
    out: Path
    command: str = ""
    progress: bool = True
    on_record: Callable[[Record], None] = lambda record: None
    records: dict[tuple[str, int], Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / ".writable", "")
            (self.out / ".writable").unlink()
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {error.strerror}") from error
        self.lock = _locked(self.out / ".lock")
        self.store = Store(self.out / ".steps", self.plan.build)
        self.log = RunLog(self.out / "results.jsonl", self.about())

    # --- the run --------------------------------------------------------------------------

    def execute(self) -> list[Record]:
        """Run every chain and seed, then time all files together; return the records."""
        with self.lock:
            self._build_all()
            self._time()
        return list(self.records.values())

    def _build_all(self) -> None:
        seeds, rows = self.plan.suite.seeds, self.plan.rows
        bar = tqdm(
            total=len(seeds) * len(rows),
            unit="chain",
            disable=not (self.progress and sys.stderr.isatty()),
        )
        with bar:
            for seed in seeds:
                baseline: Built | None = None
                for row in rows:
                    bar.set_description(row.text[:40])
                    built = self._row(row, seed, baseline)
                    baseline = baseline or built
                    bar.update()

    def _row(self, row: Row, seed: int, baseline: Built | None) -> Built | None:
        built = None
        try:
            if row.chain is not None and baseline is None:
                raise StepFailed("the baseline failed, so there is nothing to start from")
            built = self._build(row, seed, baseline)
            record = self._measure(row, seed, built)
        except Exception as error:
            # One chain's failure is a row; every other chain goes on.
            record = Record(
                row.text,
                seed,
                "failed",
                error=f"{type(error).__name__}: {error}",
                journal=({"kind": "traceback", "text": traceback.format_exc()[-4000:]},),
            )
            built = built if row.chain is None else None
        self._keep(record)
        return built

    def _keep(self, record: Record) -> None:
        self.records[record.chain, record.seed] = record
        self.log.record(record)
        self.on_record(record)

    # --- building -------------------------------------------------------------------------

    def _build(self, row: Row, seed: int, baseline: Built | None) -> Built:
        bench = self.plan.workbench(seed, self.progress)
        if baseline is None:
            key = digest(
                {
                    "model": self.plan.suite.model,
                    "weights": weights_hash(self.plan.start.module)
                    if self.plan.baseline is None
                    else None,
                }
            )
            steps = () if self.plan.baseline is None else self.plan.baseline.steps
            model = self.plan.start
        else:
            assert row.chain is not None
            key, model, steps = baseline.key, baseline.model, row.chain.steps
            bench = replace(bench, teacher=baseline.model)
        # A module instance has no name that says what it computes, so nothing of it is kept.
        store = None if self.plan.start.blueprint is None else self.store
        context = {**self.plan.context, "seed": seed, "versions": versions(), "ours": code_digest()}
        if baseline is not None:
            context["baseline"] = baseline.key
        journal, seconds = Journal(), 0.0
        for step in steps:
            key = step_key(key, repr(step), context | {"foreign": foreign_sources(step)})
            kept = store.get(key) if store else None
            if kept is None:
                own = Journal()
                model = run(step, model, replace(bench, journal=own))
                if store:
                    store.put(key, model, own.rows)
                rows = own.rows
            else:
                model, rows = kept
            seconds += sum(r["seconds"] for r in rows if r["kind"] == "step")
            journal.rows += rows
        return Built(model, key, journal, seconds)

    # --- measuring ------------------------------------------------------------------------

    def _measure(self, row: Row, seed: int, built: Built) -> Record:
        started = time.perf_counter()
        model, plan = built.model, self.plan
        lowered = model.lowered
        onnx = stamp(model.onnx or export(model), self._metadata(row, seed))
        # Test items: int8 ranges were fitted to the calibration split, so it would flatter them.
        inputs = stacked_inputs(plan.data.task, plan.data.test, VERIFY_ITEMS)
        verdict = verify(onnx, model, inputs, lowered=lowered)
        folder = self.out / "models" / slug(row.text, seed, plan.suite.seeds)
        # A file that did not pass does not get the name under which files are deployed.
        path = folder / ("model.onnx" if verdict.ok else "unverified.onnx")
        (folder / ("unverified.onnx" if verdict.ok else "model.onnx")).unlink(missing_ok=True)
        write_atomic(path, onnx)
        about = {
            "task": self.plan.data.task.describe(),
            "chain": self._full_chain(row),
            "lowered": lowered,
        }
        notes = [*built.journal.notes, *self._save(replace(model, onnx=None), folder, about)]
        measured: dict[str, Any] = {
            "params": counts.params(model.module),
            "nonzero_params": counts.nonzero_params(model.module),
            "macs": counts.macs(model.module, model.example),
            "onnx_bytes": len(onnx),
            "gzip_bytes": len(gzip.compress(onnx, compresslevel=6, mtime=0)),
            "train_samples": built.journal.samples,
        }
        if model.sparse:
            zeros = 1 - measured["nonzero_params"] / measured["params"]
            notes.append(
                f"{zeros:.0%} of the parameters are zero; gzipped, the file has "
                f"{measured['gzip_bytes'] / 1000:.3g} kB"
            )
        missing: dict[str, str] = {}
        hashes = {"onnx": sha256(onnx), "key": built.key}
        accuracy = self._accuracy(path, verdict, missing)
        if accuracy is not None:
            measured |= {
                "accuracy": accuracy.value,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
            }
            baseline = self.records.get(("baseline", seed))
            if row.chain is None:
                measured["accuracy_delta"] = 0.0
            elif baseline is not None and "accuracy" in baseline.measured:
                measured["accuracy_delta"] = accuracy.value - baseline.measured["accuracy"]
            name = f"{slug(row.text, seed, plan.suite.seeds)}.npz"
            hashes["predictions"] = self._sidecar(name, {"predictions": accuracy.predictions})
        if verdict.ok:
            measured["onnx_path"] = str(path.relative_to(self.out))
        if np.isfinite(verdict.max_abs_error):
            measured["top1_agreement"] = float(verdict.top1_agreement)
            measured["max_abs_error"] = float(verdict.max_abs_error)
        if verdict.ok:
            self._cuda(model, path, measured, missing)
        measured["seconds"] = round(built.seconds, 3)
        spent = {"kind": "measuring", "seconds": round(time.perf_counter() - started, 3)}
        return Record(
            row.text,
            seed,
            "ok" if verdict.ok else "unverified",
            measured,
            error="" if verdict.ok else verdict.reason,
            notes=tuple(notes),
            missing=missing,
            hashes=hashes,
            journal=(*built.journal.rows, spent),
        )

    def _accuracy(
        self, path: Path, verdict: Verification, missing: dict[str, str]
    ) -> Accuracy | None:
        try:
            return measure_accuracy(
                path, self.plan.data.task, self.plan.data.test, self.plan.threads
            )
        except Exception as error:
            if verdict.ok:
                raise
            missing["accuracy"] = f"the file does not run: {error}"
            return None

    def _save(self, model: Model, folder: Path, about: dict[str, Any]) -> list[str]:
        """Save what a Python user can load again; say so where that cannot be done."""
        if model.blueprint is None:
            return ["a module instance: the ONNX file is the only artifact"]
        try:
            save(model, folder, self.plan.build, about)
        except CannotSave as error:
            return [f"the ONNX file is the only artifact: {error}"]
        return []

    def _cuda(
        self, model: Model, path: Path, measured: dict[str, Any], missing: dict[str, str]
    ) -> None:
        inputs = stacked_inputs(self.plan.data.task, self.plan.data.test, 1)
        arrays = [tensor.numpy() for tensor in inputs]
        ways: dict[str, Callable[[], Latency]] = {
            "cuda_torch_ms_p50": lambda: cuda_torch_latency(model.module, inputs),
            "cuda_ms_p50": lambda: cuda_onnx_latency(path, arrays),
        }
        for name, way in ways.items():
            try:
                value, reason = way()
            except Exception as error:
                # The file is sound; that a GPU cannot run it is a reason in the row.
                value, reason = None, f"{type(error).__name__}: {error}"
            if value is None:
                missing[name] = reason
            else:
                measured[name] = value

    def _sidecar(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        write_atomic(self.out / "raw" / name, content.getvalue())
        return sha256(content.getvalue())

    # --- timing ---------------------------------------------------------------------------

    def _time(self) -> None:
        files = {
            key: self.out / record.measured["onnx_path"]
            for key, record in self.records.items()
            if record.status == "ok"
        }
        baseline = next((key for key in files if key[0] == "baseline"), None)
        if baseline is None:
            for key in files:
                self._keep(_without_timing(self.records[key], "there is no sound baseline file"))
            return
        names = {key: f"{key[0]} [seed {key[1]}]" for key in files}
        inputs = stacked_inputs(self.plan.data.task, self.plan.data.test, TIMING_SAMPLES)
        timings = measure(
            {names[key]: path for key, path in files.items()},
            [tensor.numpy() for tensor in inputs],
            {names[k]: logits_of(path, inputs, self.plan.threads) for k, path in files.items()},
            baseline=names[baseline],
            threads=self.plan.threads,
            batches=(LATENCY_BATCH, THROUGHPUT_BATCH),
            seconds=self.plan.suite.timing_seconds,
            progress=self.progress and sys.stderr.isatty(),
        )
        self._sidecar("timing.npz", timings.raw())
        for key, path in files.items():
            record = _with_timing(self.records[key], names[key], timings)
            if record.status != "ok":
                path.rename(path.with_name("unverified.onnx"))
            self._keep(record)

    # --- descriptions ---------------------------------------------------------------------

    def _full_chain(self, row: Row) -> str:
        first = "" if self.plan.baseline is None else repr(self.plan.baseline)
        rest = "" if row.chain is None else row.text
        return " -> ".join(filter(None, (first, rest)))

    def _metadata(self, row: Row, seed: int) -> dict[str, str]:
        task = self.plan.data.task.describe()
        return {
            "labels": json.dumps(task["classes"]),
            "preprocessing": json.dumps(task["preprocessing"]),
            "task": task["kind"],
            "data": task["data"],
            "model": self.plan.suite.model,
            "chain": self._full_chain(row),
            "seed": str(seed),
            "versions": json.dumps(versions()),
        }

    def about(self) -> dict[str, Any]:
        """Return what the report says about the run as a whole."""
        plan = self.plan
        notes = [plan.data.note] if plan.data.note else []
        if plan.baseline is None:
            notes.append(
                "the model came with weights, and nobody knows whether they have seen the "
                "validation split"
            )
        return {
            "suite": plan.suite.name,
            "description": plan.suite.description,
            "data": plan.data.task.name,
            "task": plan.data.task.describe(),
            "fingerprint": plan.data.fingerprint,
            "split": {
                "train": len(plan.data.train),
                "validation": len(plan.data.validation),
                "calibration": len(plan.data.calibration),
                "test": len(plan.data.test),
            },
            "test_items": len(plan.data.test),
            "model": plan.suite.model,
            "baseline": plan.origin,
            "command": self.command,
            "notes": notes,
            "environment": environment(plan.threads, str(plan.device), plan.precision),
        }


def _locked(path: Path) -> Any:
    """Hold a lock on a run's folder until this process ends, so that rows do not interleave."""
    file = open(path, "w")  # noqa: SIM115 - held until the run ends
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # Windows has no flock; there, two runs in one folder are the user's to avoid.
    except OSError as error:
        raise UserError(f"another run is writing to {path.parent}: give --out elsewhere") from error
    return file


def _with_timing(record: Record, name: str, timings: Timings) -> Record:
    single, batched = timings[name, LATENCY_BATCH], timings[name, THROUGHPUT_BATCH]
    error = single.error or batched.error
    if error and not (single.wrong or batched.wrong):
        return _without_timing(record, error)
    if error:
        # Its answers in the timing process were not the verified ones, or it did not run there.
        measured = {k: v for k, v in record.measured.items() if k != "onnx_path"}
        return replace(
            record, status="unverified", error=f"while timed: {error}", measured=measured
        )
    measured = {
        **record.measured,
        "cpu_ms_p50": single.p50_ms,
        "cpu_ms_p90": single.p90_ms,
        "cpu_speedup": single.speedup,
        "cpu_speedup_low": single.low,
        "cpu_speedup_high": single.high,
        "cpu_batch32_per_s": batched.per_second,
    }
    notes = record.notes
    if single.noisy:
        notes = (*notes, "noisy latency: half of the calls lie further apart than a fifth")
    if timings.failures:
        notes = (*notes, *timings.failures)
    return replace(record, measured=measured, notes=notes)


def _without_timing(record: Record, reason: str) -> Record:
    """The file is sound, but no timing process lived to time it."""
    missing = {**record.missing, "cpu_ms_p50": reason}
    return replace(record, missing=missing, notes=(*record.notes, f"not timed: {reason}"))


def slug(text: str, seed: int, seeds: tuple[int, ...]) -> str:
    """Return a folder name for a chain: readable, and different for different chains."""
    readable = re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("->", "--")).strip("-.")
    name = readable if len(readable) <= 60 else readable[:60].rstrip("-.")
    if name != "baseline":
        name = f"{name}-{sha256(text.encode())[:6]}"
    return name if len(seeds) == 1 else f"{name}-seed{seed}"
