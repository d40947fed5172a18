"""The harness: runs a plan, measures every file beside the baseline's, writes every row."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from compress.compressor import Compressor, Journal, Workbench, run
from compress.errors import StepFailed
from compress.files import digest
from compress.harness.compare import Answers, compare_records
from compress.harness.describe import about
from compress.harness.gpu import gpu_records, keep_module
from compress.harness.latency import time_records
from compress.harness.measuring import Built, measure_row
from compress.harness.memory import memory_records
from compress.harness.outputs import Outputs
from compress.harness.plan import Plan, weights_hash
from compress.harness.record import Key, Record, RunLog
from compress.harness.rows import BASELINE, Row
from compress.harness.store import Store, code_digest, foreign_sources, step_key, versions


@dataclass
class Bench:
    """One run of a plan, with its folder of outputs."""

    plan: Plan
    out: Path
    command: str = ""
    progress: bool = True
    on_record: Callable[[Record], None] = lambda record: None
    records: dict[Key, Record] = field(default_factory=dict)
    modules: dict[Key, nn.Module] = field(default_factory=dict)
    """Float modules for the GPU stage; empty where there is no GPU."""

    def __post_init__(self) -> None:
        self.outputs = Outputs(self.out, self.plan.suite.seeds)
        self.store = Store(self.out / ".steps", self.plan.build)
        self.log = RunLog(self.out / "results.jsonl", about(self.plan, self.command))

    def execute(self) -> list[Record]:
        """Run every chain and seed, compare their answers, then time all files together."""
        with self.outputs.lock:
            try:
                self._build_all()
            finally:
                # Also after Ctrl-C: what is finished is worth its verdict.
                self._compare()
            for record in memory_records(self.records, self.plan, self.outputs):
                self._keep(record)
            timed = self._timed(time_records(self.records, self.plan, self.outputs, self.progress))
            if any(record.status != "ok" for record in timed):
                # A file that was caught while it was timed must not stand in a comparison.
                self._compare()
            self._timed(
                gpu_records(self.records, self.plan, self.outputs, self.modules, self.progress)
            )
        return list(self.records.values())

    def _timed(self, found: tuple[list[Record], dict[str, Any]]) -> list[Record]:
        """Keep timed records and what is known of their timing as a whole."""
        records, news = found
        for record in records:
            self._keep(record)
        if news:
            self.log.about(news)
        return records

    def _compare(self) -> None:
        answers = {
            key: Answers(stored["predictions"], stored["correct"])
            for key, record in self.records.items()
            if record.status == "ok"
            for stored in [self.outputs.stored(self.outputs.model(*key).name)]
        }
        for key, record in compare_records(self.records, answers).items():
            if record != self.records[key]:
                self._keep(record)

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
        """Build and measure one row; return what was built if it is the baseline."""
        built = None
        try:
            if row.chain is not None and baseline is None:
                raise StepFailed("the baseline failed, so there is nothing to start from")
            built = self._build(row, seed, baseline)
            keep_module(self.modules, (row.text, seed), built.model)
            beside = self.records.get((BASELINE, seed))
            record = measure_row(self.plan, self.outputs, row, seed, built, beside)
        except Exception as error:
            # One chain's failure is a row; every other chain goes on.
            record = Record(
                row.text,
                seed,
                "failed",
                error=f"{type(error).__name__}: {error}",
                journal=({"kind": "traceback", "text": traceback.format_exc()[-4000:]},),
                role=row.role,
                control=row.control,
            )
        if row.chain is None and "split" in record.hashes:
            self.log.about({"split_hash": record.hashes["split"]})
        self._keep(record)
        return built if row.chain is None else None

    def _keep(self, record: Record) -> None:
        self.records[record.chain, record.seed] = record
        self.log.record(record)
        self.on_record(record)

    def _build(self, row: Row, seed: int, baseline: Built | None) -> Built:
        """Run the steps of a row, each unless the store has its result."""
        plan = self.plan
        bench = plan.workbench(seed, self.progress)
        context = {**plan.context, "seed": seed, "versions": versions(), "ours": code_digest()}
        if baseline is None:
            given = None if plan.baseline else weights_hash(plan.start.module)
            start = Built(
                plan.start, digest({"model": plan.suite.model, "weights": given}), Journal(), 0.0
            )
            return self._steps(plan.baseline, start, bench, context)
        assert row.chain is not None
        bench = replace(bench, teacher=baseline.model)
        start = replace(baseline, journal=Journal(), seconds=0.0)
        return self._steps(row.chain, start, bench, context | {"baseline": baseline.key})

    def _steps(
        self, chain: Compressor | None, start: Built, bench: Workbench, context: dict[str, Any]
    ) -> Built:
        # A module instance has no name that says what it computes, so nothing of it is kept.
        store = None if self.plan.start.blueprint is None else self.store
        model, key, journal = start.model, start.key, Journal()
        for step in () if chain is None else chain.steps:
            key = step_key(key, repr(step), context | {"foreign": foreign_sources(step)})
            kept = store.get(key) if store else None
            if kept is None:
                own = Journal()
                model = run(step, model, replace(bench, journal=own))
                kept = model, own.rows
                if store:
                    store.put(key, *kept)
            model, rows = kept
            journal.rows += rows
        seconds = sum(row["seconds"] for row in journal.rows if row["kind"] == "step")
        return Built(model, key, journal, seconds)
