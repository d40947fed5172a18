"""The GPU stage: modules and files of all rows in turns on the device, after the CPU's timing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compress.bench.measure.accuracy import logits_of
from compress.bench.measure.gpu_row import FORMS, PEAK, PROVIDERS, SPEEDUPS, WORDS, Found
from compress.bench.measure.latency import candidate_name
from compress.bench.plan.graph import ChainRun, Graph, Node
from compress.bench.plan.plan import Plan
from compress.bench.plan.rows import BASELINE
from compress.bench.store.outputs import Outputs
from compress.bench.store.store import Entry
from compress.results.record import Key, Record
from compress.system.cuda import Cuda, first_line
from compress.system.files import write_json
from compress.tasks.base import stacked_inputs
from compress.timing.cuda.files import (
    TENSORRT,
    Provider,
    absent,
    file_candidate,
    left_over,
    open_file,
    tf32,
)
from compress.timing.cuda.modules import (
    CHANNELS_LAST,
    Feeds,
    Form,
    faster_layout,
    module_candidate,
    peak_bytes,
)
from compress.timing.cuda.turns import Effort, Maker, setting_of, take_turns
from compress.timing.interleave import Candidate
from compress.timing.summary import Timings

SAMPLES = 64
FILE_TOLERANCE, LOWERED_TOLERANCE = 0.02, 0.1
"""Deviations from the file's own outputs on the CPU. Rounding falls elsewhere on another device,
and in a quantized file a step is large."""


RECORDS, FOUND = "records.json", "found.json"


def gpu_stage(
    plan: Plan,
    graph: Graph,
    stored: Callable[[Node], Entry | None],
    folder: Path,
    progress: bool,
) -> None:
    """Run the stage on the records in `folder`, and leave there what it found.

    For a process of its own: what breaks the device, or the driver, ends with it.
    """
    asked = json.loads((folder / RECORDS).read_text())
    records = {(r.chain, r.seed): r for r in map(Record.from_json, asked["records"])}
    modules = {
        key: module
        for key, record in records.items()
        if record.status == "ok"
        and (module := module_of(graph.chain_run(key), graph, plan, stored)) is not None
    }
    outputs = Outputs(Path(asked["out"]), plan.suite.seeds, lock=False)
    found, about = gpu_records(records, plan, outputs, modules, progress)
    write_json(folder / FOUND, {"records": [asdict(r) for r in found], "about": about})


def module_of(
    chain_run: ChainRun, graph: Graph, plan: Plan, stored: Callable[[Node], Entry | None]
) -> nn.Module | None:
    """Return a row's float module from the store; None where it has none that torch could run.

    Of a lowered model there is nothing to run; what no file can hold is gone with its process.
    """
    if chain_run.model == graph.start:
        return plan.start.module
    entry = stored(graph.nodes[chain_run.model])
    if entry is None:
        return None
    model = entry.model(plan.build)
    return None if model.lowered else model.module


def gpu_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    modules: Mapping[Key, nn.Module],
    progress: bool,
    device: Cuda | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Time the modules and files of all `ok` records on the GPU, in turns.

    Returns these records with the `cuda_` columns, each of which has a figure or a reason, and
    what the run's description gains. Whatever goes wrong is a reason, never an exception; after
    an error that breaks the device, what is left has it for a reason.
    """
    stage = _Stage(records, plan, modules, device or Cuda())
    if stage.sound and not stage.everywhere.keys() >= WORDS.keys():
        stage.time(outputs, progress and sys.stderr.isatty())
    return stage.records(), stage.about()


class _Stage:
    """What is timed, and what was found so far."""

    def __init__(
        self,
        records: Mapping[Key, Record],
        plan: Plan,
        modules: Mapping[Key, nn.Module],
        device: Cuda,
    ) -> None:
        self.plan, self.device = plan, device
        self.sound = {key: record for key, record in records.items() if record.status == "ok"}
        self.baseline = next((key for key in self.sound if key[0] == BASELINE), None)
        self.modules = {key: modules[key] for key in self.sound if key in modules}
        self.lowered = {row.text for row in plan.rows if row.chain and row.chain.lowers}
        self.found = {key: Found() for key in self.sound}
        self.card: dict[str, Any] = {}
        self.controls: dict[str, Any] = {}
        self.raw: dict[str, np.ndarray] = {}
        try:
            self.everywhere = self._everywhere()
        except Exception as error:  # of a driver that does not suit, say
            reason = f"what the GPU can do cannot be told: {first_line(error)}"
            self.everywhere = dict.fromkeys(WORDS, reason)

    def _everywhere(self) -> dict[str, str]:
        """Return why a column cannot be filled for any row."""
        if self.baseline is None:
            return dict.fromkeys(WORDS, "there is no sound baseline file")
        gone = {column: absent(provider) for column, provider in PROVIDERS.items()}
        torch_gone = self.device.absent()
        if not torch_gone and self.baseline not in self.modules:
            torch_gone = "the baseline's module is not at hand"
        gone |= dict.fromkeys((*FORMS, PEAK), torch_gone)
        if not torch_gone:
            gone |= {column: self.device.lacks(form.dtype) for column, form in FORMS.items()}
        gone |= {f"{head}_speedup": gone[column] for column, head in SPEEDUPS.items()}
        return {column: reason for column, reason in gone.items() if reason}

    def time(self, outputs: Outputs, progress: bool) -> None:
        """Fill all columns and keep the raw seconds; an error is a reason where figures miss."""
        try:
            self._prepare(outputs)
            with self.device.settled():
                self._run(progress)
        except Exception as error:  # the run's other figures are worth keeping
            self._give_up(error)
        try:
            outputs.sidecar("cuda", self.raw)
        except Exception as error:
            told = getattr(error, "strerror", None) or first_line(error)
            self._note(f"the raw seconds of the GPU could not be kept: {told}")

    def _give_up(self, error: Exception) -> None:
        reason = f"the timing on the GPU was given up: {first_line(error)}"
        for column in WORDS:
            told = (column in found.figures | found.reasons for found in self.found.values())
            if not any(told):
                self.everywhere.setdefault(column, reason)

    def _note(self, sentence: str) -> None:
        for found in self.found.values():
            found.notes[sentence] = None

    def _run(self, progress: bool) -> None:
        """Fill one column after the other; what breaks the device ends the stage."""
        works: dict[str, Callable[[str], None]] = {PEAK: self._peaks}
        works |= dict.fromkeys(FORMS, self._time_modules)
        works |= dict.fromkeys(PROVIDERS, self._time_files)
        broken = ""
        for column, work in works.items():
            if column in self.everywhere:
                continue
            if progress:
                print(f"GPU: {WORDS[column]}", file=sys.stderr, flush=True)
            try:
                if broken:
                    raise RuntimeError(f"the GPU broke before this was timed: {broken}")
                work(column)
            except Exception as error:  # the other columns are still to be filled
                for found in self.found.values():
                    if column not in found.figures:
                        found.reasons.setdefault(column, first_line(error))
            self.feeds.clear()
            self.device.free()
            broken = broken or self.device.failure()

    def _prepare(self, outputs: Outputs) -> None:
        plan = self.plan
        self.card = {} if self.device.absent() else self.device.about()
        inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
        self.feeds = Feeds(inputs, self.device)
        self.paths = {k: outputs.folder / r.measured["onnx_path"] for k, r in self.sound.items()}
        self.expected = {
            key: logits_of(path, inputs, plan.threads) for key, path in self.paths.items()
        }
        self.layouts: dict[tuple[Key, Form], str] = {}

    def _peaks(self, column: str) -> None:
        for key, module in self.modules.items():
            try:
                self.found[key].figures[column] = peak_bytes(module, self.feeds, self.device)
            except Exception as error:  # out of memory, or a kernel that is missing
                self.found[key].reasons[column] = first_line(error)
            self.device.free()

    def _time_modules(self, column: str) -> None:
        form = FORMS[column]
        makers = {candidate_name(key): self._module(key, form) for key in self.modules}
        timings = self._turns(makers, form.batch)
        for key in self.modules:
            found = self.found[key]
            found.keep(column, timings[candidate_name(key), setting_of(form.batch)])
            if column in found.figures and self._layout(key, form) == CHANNELS_LAST:
                found.notes[f"{WORDS[column]} in channels_last"] = None
        self._keep_run(column, timings)

    def _module(self, key: Key, form: Form) -> Maker:
        # Now, while nothing else lies on the device.
        try:
            own = replace(form, layout=self._layout(key, form))
        except Exception as error:  # it stands with the row, as what goes wrong later does
            return _failing(error)
        finally:
            self.device.free()
        module, expected = self.modules[key], self.expected[key]
        return lambda: module_candidate(module, own, self.feeds, expected, self.device)

    def _layout(self, key: Key, form: Form) -> str:
        """Return the memory format for a row in a form."""
        if (key, form) not in self.layouts:
            self.layouts[key, form] = faster_layout(
                self.modules[key], form, self.feeds, self.expected[key], self.device
            )
        return self.layouts[key, form]

    def _time_files(self, column: str) -> None:
        provider = PROVIDERS[column]
        makers = {candidate_name(key): self._file(key, provider) for key in self.sound}
        # TensorRT compiles every file for minutes, each time that it is opened.
        timings = self._turns(makers, 1, repetitions=1 if provider is TENSORRT else None)
        rounded = f"{provider.words} with TF32 (NVIDIA_TF32_OVERRIDE=0 forbids it)"
        for key, found in self.found.items():
            found.keep(column, timings[candidate_name(key), setting_of(1)])
            if column in found.figures and tf32(provider):
                found.notes[rounded] = None
        self._keep_run(column, timings)

    def _file(self, key: Key, provider: Provider) -> Maker:
        samples = [sample.numpy() for sample in self.feeds.samples]
        allowed = LOWERED_TOLERANCE if key[0] in self.lowered else FILE_TOLERANCE

        def make() -> Any:
            session = open_file(self.paths[key], provider)
            if rest := left_over(session, provider):
                self.found[key].notes[f"{provider.words}: {rest}"] = None
            return file_candidate(session, provider, samples, self.expected[key], 1, allowed)

        return make

    def _turns(
        self, makers: Mapping[str, Maker], batch: int, repetitions: int | None = None
    ) -> Timings:
        assert self.baseline is not None, "without a baseline nothing is timed"
        effort = Effort(seconds=self.plan.suite.timing_seconds / len(FORMS | PROVIDERS))
        return take_turns(
            makers,
            baseline=candidate_name(self.baseline),
            batch=batch,
            device=self.device,
            effort=replace(effort, repetitions=repetitions) if repetitions else effort,
        )

    def _keep_run(self, column: str, timings: Timings) -> None:
        [setting] = timings.raw_timings.settings
        told = timings.about()[setting]
        kept = ("control", "control_low", "control_high", "margin", "bar", "trusted", "seconds")
        self.controls[column] = {key: told[key] for key in (*kept, "untrusted_because")}
        self.controls[column]["repetitions"] = told["processes"]
        for place, seconds in timings.raw().items():
            self.raw[f"{column}/{place.replace(f'/{setting}/', '/', 1)}"] = seconds

    def records(self) -> list[Record]:
        return [
            self.found[key].onto(record, self.everywhere, key[0] in self.lowered)
            for key, record in self.sound.items()
        ]

    def about(self) -> dict[str, Any]:
        """Return what a table says of its GPU figures (JSON); nothing where nothing was timed."""
        if not self.controls:
            return {}
        return {
            "cuda": {
                "device": self.card,
                "tf32": self._tf32(),
                "clock": "CUDA events for modules, the host's clock for files",
                "graph_input_copy": "included",
                "repetitions_are": "copies placed anew within one process",
                "controls": self.controls,
            }
        }

    def _tf32(self) -> dict[str, bool]:
        """Return for every column in float32 whether products may be rounded to TF32."""
        modules = {column: False for column, form in FORMS.items() if form.dtype == "float32"}
        allowed = modules | {column: tf32(provider) for column, provider in PROVIDERS.items()}
        return {column: allowed[column] for column in self.controls if column in allowed}


def _failing(error: Exception) -> Maker:
    """Return a maker that raises an error, without the models that its traceback refers to."""
    bare = error.with_traceback(None)
    bare.__context__ = bare.__cause__ = None

    def make() -> Candidate:
        raise bare.with_traceback(None)

    return make
