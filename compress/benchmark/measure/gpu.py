"""The GPU stage: modules and files of all rows in turns on the device, after the CPU's timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.benchmark.measure.accuracy import logits_of
from compress.benchmark.plan.graph import ChainRun, Graph, Node
from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.outputs import Outputs
from compress.benchmark.store.store import Entry
from compress.results.gpu import SPEEDUPS, WORDS, GpuFacts, RowFacts
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import GPU, PEAK
from compress.system.cuda import Cuda, first_line
from compress.system.files import write_json
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.cuda.files import (
    CUDA,
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
from compress.timing.cuda.turns import Effort, Maker, take_turns
from compress.timing.interleave import Candidate

SAMPLES = 64
FORMS = {
    "cuda_torch_ms_p50": Form(),
    "cuda_torch_float16_ms_p50": Form("float16"),
    "cuda_torch_bfloat16_ms_p50": Form("bfloat16"),
    "cuda_batch32_per_s": Form(batch=32),
    # The last, because a graph that cannot be captured can leave torch's allocator in disorder.
    "cuda_graph_ms_p50": Form(graph=True),
}
"""Column -> how the module is run for it."""
PROVIDERS = {"cuda_ms_p50": CUDA, "cuda_trt_ms_p50": TENSORRT}
"""Column -> how the file is run for it."""
SECONDS = "raw/cuda.json"
FILE_TOLERANCE, LOWERED_TOLERANCE = 0.02, 0.1
"""Deviations from the file's own outputs on the CPU. Rounding falls elsewhere on another device,
and in a quantized file a step is large."""


RECORDS, FOUND = "records.json", "found.json"


def gpu_stage(
    plan: Plan,
    graph: Graph,
    stored: Callable[[Node], Entry | None],
    folder: Path,
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
    found = time_on_gpu(records, plan, outputs, modules)
    write_json(folder / FOUND, asdict(found))


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


def time_on_gpu(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    modules: Mapping[Key, nn.Module],
    device: Cuda | None = None,
) -> Stage:
    """Time the modules and files of all `ok` records on the GPU, in turns.

    Returns where the facts lie (see `compress.results.gpu`). Whatever goes wrong is a reason
    there, never an exception; after an error that breaks the device, what is left has it for one.
    """
    columns = _Columns(records, plan, modules, device or Cuda())
    if columns.sound and not columns.facts.reasons.keys() >= WORDS.keys():
        columns.time(outputs)
    try:
        sha256 = write_values(outputs.folder / SECONDS, columns.facts.to_json())
    except OSError as error:
        why = f"the raw seconds of the GPU could not be kept: {error.strerror}"
        return Stage(runtime=GPU, reason=why)
    return Stage(runtime=GPU, file=SECONDS, sha256=sha256)


class _Columns:
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
        self.facts = GpuFacts(rows={record.name: RowFacts() for record in self.sound.values()})
        try:
            self.facts.reasons = self._everywhere()
        except Exception as error:  # of a driver that does not suit, say
            reason = f"what the GPU can do cannot be told: {first_line(error)}"
            self.facts.reasons = dict.fromkeys(WORDS, reason)

    def row(self, key: Key) -> RowFacts:
        return self.facts.rows[self.sound[key].name]

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
        gone |= {speedup: gone[column] for column, speedup in SPEEDUPS.items()}
        return {column: reason for column, reason in gone.items() if reason}

    def time(self, outputs: Outputs) -> None:
        """Fill all columns; an error is a reason where figures miss."""
        try:
            self._prepare(outputs)
            with self.device.settled():
                self._run()
        except Exception as error:  # the run's other figures are worth keeping
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = f"the timing on the GPU was given up: {first_line(error)}"
        rows = self.facts.rows.values()
        told = {PEAK} if any(row.peak is not None for row in rows) else set()
        told |= self.facts.raw_timings.keys() | {column for row in rows for column in row.reasons}
        told |= {SPEEDUPS[column] for column in told & SPEEDUPS.keys()}
        for column in WORDS.keys() - told:
            self.facts.reasons.setdefault(column, reason)

    def _run(self) -> None:
        """Fill one column after the other; what breaks the device ends the stage."""
        works: dict[str, Callable[[str], None]] = {PEAK: self._peaks}
        works |= dict.fromkeys(FORMS, self._time_modules)
        works |= dict.fromkeys(PROVIDERS, self._time_files)
        broken = ""
        for column, work in works.items():
            if column in self.facts.reasons:
                continue
            try:
                if broken:
                    raise RuntimeError(f"the GPU broke before this was timed: {broken}")
                with stage(f"timing on the GPU: {WORDS[column]}"):
                    work(column)
            except Exception as error:  # the other columns are still to be filled
                for row in self.facts.rows.values():
                    row.reasons.setdefault(column, first_line(error))
            self.feeds.clear()
            self.device.free()
            broken = broken or self.device.failure()

    def _prepare(self, outputs: Outputs) -> None:
        plan = self.plan
        self.facts.device = {} if self.device.absent() else self.device.about()
        inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
        self.feeds = Feeds(inputs, self.device)
        self.paths = {k: outputs.folder / r.files["onnx"] for k, r in self.sound.items()}
        self.expected = {
            key: logits_of(path, inputs, plan.threads) for key, path in self.paths.items()
        }
        self.layouts: dict[tuple[Key, Form], str] = {}

    def _peaks(self, column: str) -> None:
        for key, module in self.modules.items():
            try:
                self.row(key).peak = int(peak_bytes(module, self.feeds, self.device))
            except Exception as error:  # out of memory, or a kernel that is missing
                self.row(key).reasons[column] = first_line(error)
            self.device.free()

    def _time_modules(self, column: str) -> None:
        form = FORMS[column]
        makers = {self.sound[key].name: self._module(key, form) for key in self.modules}
        self._take_turns(column, makers, form.batch)
        for key in self.modules:
            if self.layouts.get((key, form)) == CHANNELS_LAST:
                self.row(key).remarks[column] = [f"{WORDS[column]} in channels_last"]
        if form.dtype == "float32":
            self.facts.tf32[column] = False

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
        makers = {r.name: self._file(key, column, provider) for key, r in self.sound.items()}
        # TensorRT compiles every file for minutes, each time that it is opened.
        self._take_turns(column, makers, 1, repetitions=1 if provider is TENSORRT else None)
        self.facts.tf32[column] = tf32(provider)
        if tf32(provider):
            rounded = f"{provider.words} with TF32 (NVIDIA_TF32_OVERRIDE=0 forbids it)"
            for row in self.facts.rows.values():
                row.remarks.setdefault(column, []).append(rounded)

    def _file(self, key: Key, column: str, provider: Provider) -> Maker:
        samples = [sample.numpy() for sample in self.feeds.samples]
        allowed = LOWERED_TOLERANCE if key[0] in self.lowered else FILE_TOLERANCE

        def make() -> Any:
            session = open_file(self.paths[key], provider)
            if rest := left_over(session, provider):
                said = self.row(key).remarks.setdefault(column, [])
                said += [] if (remark := f"{provider.words}: {rest}") in said else [remark]
            return file_candidate(session, provider, samples, self.expected[key], 1, allowed)

        return make

    def _take_turns(
        self, column: str, makers: Mapping[str, Maker], batch: int, repetitions: int | None = None
    ) -> None:
        assert self.baseline is not None, "without a baseline nothing is timed"
        effort = Effort(seconds=self.plan.suite.timing_seconds / len(FORMS | PROVIDERS))
        self.facts.raw_timings[column] = take_turns(
            makers,
            baseline=self.sound[self.baseline].name,
            batch=batch,
            device=self.device,
            effort=replace(effort, repetitions=repetitions) if repetitions else effort,
        )


def _failing(error: Exception) -> Maker:
    """Return a maker that raises an error, without the models that its traceback refers to."""
    bare = error.with_traceback(None)
    bare.__context__ = bare.__cause__ = None

    def make() -> Candidate:
        raise bare.with_traceback(None)

    return make
