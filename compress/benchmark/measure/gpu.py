"""The GPU stage: modules and files of all rows in turns on the device, after the CPU's timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import nn

from compress.benchmark.measure.accuracy import logits_of
from compress.benchmark.plan.graph import ChainRun, Graph, Node
from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.outputs import Outputs
from compress.benchmark.store.store import Entry
from compress.errors import first_line
from compress.results.gpu import SPEEDUPS, WORDS, GpuFacts, RowFacts
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import GPU, PEAK
from compress.runtimes.onnxruntime_cuda import CUDA, TENSORRT, Provider
from compress.runtimes.torch_cuda import CHANNELS_LAST, Form, peak_bytes
from compress.system.cuda import Cuda
from compress.system.files import write_json
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.cuda import (
    Feeds,
    Maker,
    faster_layout,
    file_candidate,
    module_candidate,
    take_turns,
)
from compress.timing.interleave import Candidate
from compress.timing.interleave import Plan as TimingPlan

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
PLAN, REPETITIONS = TimingPlan(0.0, min_rounds=10, block_seconds=0.005), 5
"""How a column is timed; its seconds are shared out among the repetitions."""
RECORDS, FOUND = "records.json", "found.json"


def gpu_stage(
    plan: Plan, graph: Graph, stored: Callable[[Node], Entry | None], folder: Path
) -> None:
    """Run the stage on the records in `folder`, and write its result there.

    For a process of its own: what breaks the device, or the driver, ends with it.
    """
    request = json.loads((folder / RECORDS).read_text())
    records = {r.key: r for r in map(Record.from_json, request["records"])}
    modules = {
        key: module
        for key, record in records.items()
        if record.status == "ok"
        and (module := module_of(graph.chain_run(key), graph, plan, stored)) is not None
    }
    outputs = Outputs(Path(request["out"]), plan.suite.seeds, lock=False)
    write_json(folder / FOUND, asdict(time_on_gpu(records, plan, outputs, modules)))


def module_of(
    chain_run: ChainRun, graph: Graph, plan: Plan, stored: Callable[[Node], Entry | None]
) -> nn.Module | None:
    """Return a row's float module from the store; None where it has none that torch could run.

    A lowered model has none; what could not be saved is gone with its process.
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
    there, never an exception; an error that breaks the device is the reason for all that is left.
    """
    columns = _Columns(records, plan, modules, device or Cuda())
    if columns.sound and not columns.facts.reasons.keys() >= WORDS.keys():
        columns.time(outputs)
    try:
        sha256 = write_values(outputs.folder / SECONDS, columns.facts.to_json())
    except OSError as error:
        why = f"the raw seconds of the GPU could not be saved: {error.strerror}"
        return Stage(runtime=GPU, reason=why)
    return Stage(runtime=GPU, file=SECONDS, sha256=sha256)


class _Columns:
    """What is timed, and the facts so far."""

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
        except Exception as error:  # of an unsuitable driver, say
            reason = f"what the GPU can do is unknown: {first_line(error)}"
            self.facts.reasons = dict.fromkeys(WORDS, reason)

    def row(self, key: Key) -> RowFacts:
        return self.facts.rows[self.sound[key].name]

    def _everywhere(self) -> dict[str, str]:
        """Return why a column cannot be filled for any row."""
        if self.baseline is None:
            return dict.fromkeys(WORDS, "there is no sound baseline file")
        reasons = {column: provider.absent() for column, provider in PROVIDERS.items()}
        no_torch = self.device.absent()
        if not no_torch and self.baseline not in self.modules:
            no_torch = "the baseline's module is missing"
        reasons |= dict.fromkeys((*FORMS, PEAK), no_torch)
        if not no_torch:
            reasons |= {column: self.device.lacks(form.dtype) for column, form in FORMS.items()}
        reasons |= {speedup: reasons[column] for column, speedup in SPEEDUPS.items()}
        return {column: reason for column, reason in reasons.items() if reason}

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
        done = {PEAK} if any(row.peak is not None for row in rows) else set()
        done |= self.facts.raw_timings.keys() | {column for row in rows for column in row.reasons}
        done |= {SPEEDUPS[column] for column in done & SPEEDUPS.keys()}
        for column in WORDS.keys() - done:
            self.facts.reasons.setdefault(column, reason)

    def _run(self) -> None:
        """Fill one column after the other; what breaks the device ends the stage."""
        fill: dict[str, Callable[[str], None]] = {PEAK: self._peaks}
        fill |= dict.fromkeys(FORMS, self._time_modules)
        fill |= dict.fromkeys(PROVIDERS, self._time_files)
        broken = ""
        for column in fill:
            if column in self.facts.reasons:
                continue
            try:
                if broken:
                    raise RuntimeError(f"the GPU broke before this was timed: {broken}")
                with stage(f"timing on the GPU: {WORDS[column]}"):
                    fill[column](column)
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

    def _peaks(self, column: str) -> None:
        for key, module in self.modules.items():
            try:
                self.row(key).peak = peak_bytes(module, self.feeds.samples, self.device)
            except Exception as error:  # out of memory, or a kernel that is missing
                self.row(key).reasons[column] = first_line(error)
            self.device.free()

    def _time_modules(self, column: str) -> None:
        form = FORMS[column]
        makers: dict[str, Maker] = {}
        remarked = []
        for key, module in self.modules.items():
            name, common = self.sound[key].name, (self.feeds, self.expected[key], self.device)
            # Now, while nothing else lies on the device.
            try:
                own = replace(form, layout=faster_layout(module, form, *common))
                makers[name] = partial(module_candidate, module, own, *common)
                remarked += [key] if own.layout == CHANNELS_LAST else []
            except Exception as error:  # it stands with the row, as what goes wrong later does
                makers[name] = _failing(error)
            finally:
                self.device.free()
        self._take_turns(column, makers, form.batch, REPETITIONS)
        for key in remarked:
            self.row(key).remarks[column] = [f"{WORDS[column]} in channels_last"]
        if form.dtype == "float32":
            self.facts.tf32[column] = False

    def _time_files(self, column: str) -> None:
        provider = PROVIDERS[column]
        makers = {r.name: self._file(key, column, provider) for key, r in self.sound.items()}
        # TensorRT compiles every file for minutes, each time that it is opened.
        self._take_turns(column, makers, 1, 1 if provider is TENSORRT else REPETITIONS)
        self.facts.tf32[column] = provider.tf32()
        if provider.tf32():
            rounded = f"{provider.title} with TF32 (NVIDIA_TF32_OVERRIDE=0 forbids it)"
            for row in self.facts.rows.values():
                row.remarks.setdefault(column, []).append(rounded)

    def _file(self, key: Key, column: str, provider: Provider) -> Maker:
        samples = [sample.numpy() for sample in self.feeds.samples]
        allowed = LOWERED_TOLERANCE if key[0] in self.lowered else FILE_TOLERANCE

        def make() -> Candidate:
            session = provider.open(self.paths[key])
            if rest := session.left_over():
                remark, remarks = f"{provider.title}: {rest}", self.row(key).remarks
                if remark not in remarks.setdefault(column, []):
                    remarks[column].append(remark)
            return file_candidate(session, samples, self.expected[key], 1, allowed)

        return make

    def _take_turns(
        self, column: str, makers: Mapping[str, Maker], batch: int, repetitions: int
    ) -> None:
        assert self.baseline is not None, "without a baseline nothing is timed"
        seconds = self.plan.suite.timing_seconds / len(FORMS | PROVIDERS)
        self.facts.raw_timings[column] = take_turns(
            makers,
            baseline=self.sound[self.baseline].name,
            batch=batch,
            device=self.device,
            plan=replace(PLAN, seconds=seconds / repetitions),
            repetitions=repetitions,
        )


def _failing(error: Exception) -> Maker:
    """Return a maker that raises an error, without the models that its traceback refers to."""
    bare = error.with_traceback(None)
    bare.__context__ = bare.__cause__ = None

    def make() -> Candidate:
        raise bare.with_traceback(None)

    return make
