"""From a suite to a plan: everything that can be refused is refused here, before any work."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import torch
from torch import nn

from compress.benchmark.plan.keys import sources_of_data
from compress.benchmark.plan.metric import Function, Metric, figure_of, find_metric
from compress.benchmark.plan.models import Models
from compress.benchmark.plan.rows import Row, rows_of
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import Suite
from compress.chain_parser import model_sources
from compress.compressor import Compressor, leaves, seed_everything
from compress.context import StepContext, Transfer
from compress.errors import IllegalChain, UserError, unknown
from compress.heads import heads_of
from compress.model import INSTANCE, Blueprint, Model
from compress.runtimes import runtimes
from compress.system.environment import cpu_threads
from compress.system.files import sha256
from compress.system.progress import mention, stage
from compress.tasks.base import Data
from compress.training import Training
from compress.training.execution_mode import usual_precision
from compress.zoo.checkpoints import file_and_key, nearest_weights
from compress.zoo.data import data_root as find_root
from compress.zoo.data import is_files, load_data, refuse_unknown
from compress.zoo.folder import would_read
from compress.zoo.models import build_module, fresh
from compress.zoo.pretrained import Pretrained, pretrained
from compress.zoo.transfer import calibrated, load_transfer
from compress.zoo.weights import DEFAULT

COLUMNS = 100
"""Of the lines that say how inputs are prepared."""


@dataclass(frozen=True)
class Plan:
    """A suite with everything looked up: data, models, chains, device."""

    suite: Suite
    data: Data
    start: Model
    """The model before the baseline's step, with the suite's weights if it names some."""
    baseline: Compressor | None
    rows: tuple[Row, ...]
    teachers: Mapping[str, Model]
    transfers: Mapping[str, Transfer]
    """Transfer sets that chains name, by the name of their data source."""
    device: torch.device
    precision: str
    tune: bool
    """Whether a long training may measure in which precision and layout it runs fastest."""
    threads: int
    allow_code: tuple[Path, ...] = ()
    metric: Metric | None = None
    instance: nn.Module | None = None
    """A Python user's own module, where no name says how it is built."""
    students: Mapping[str, Model] = field(default_factory=dict)
    """Those that a suite names with their weights."""
    own_teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Those of the teachers that are a Python user's own modules, by name."""
    given: bool = False
    """Whether data, modules or the metric are objects of this process, not names."""
    step_threads: int = 1
    """CPU threads of every step: another number of them rounds sums differently."""
    ranks: int = 1
    """Processes that share a step's training, each on a GPU of its own."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """In words: where the weights of teachers and students come from, and under '' the model's."""
    whole: bool = False
    """Whether the model has weights of the suite's, its head included."""
    promised: float | None = None
    """The share of right answers that a library promises for its weights."""
    cpu: object = None
    """`cpu_info` of the machine that the run was started on; None: this one."""

    @property
    def origin(self) -> str:
        """In words: where the baseline comes from."""
        if self.baseline is not None:
            return repr(self.baseline)
        if self.suite.weights is not None:
            return f"the given weights ({Path(self.suite.weights).name})"
        return "the module instance as it was given"

    def fresh(self, name: str) -> Model:
        """Return a student: one that the suite names with its weights, or by a model's name."""
        if name in self.students:
            return self.students[name].copy()
        return fresh(name, self.data.task, self.allow_code, like=self.start)

    def build(self, blueprint: Blueprint) -> nn.Module:
        """Build a fresh module (of an instance: a copy) that saved weights are loaded into."""
        if blueprint.factory == INSTANCE and self.instance is not None:
            return copy.deepcopy(self.instance)
        return build_module(blueprint, self.allow_code)

    def step_context(self, seed: int, progress: bool) -> StepContext:
        data = self.data
        return StepContext(
            task=data.task,
            train=data.train,
            validation=data.validation,
            calibration=data.calibration,
            models=self.teachers,
            transfers=self.transfers,
            build=self.fresh,
            device=self.device,
            precision=self.precision,
            tune=self.tune,
            seed=seed,
            progress=progress,
        )

    @cached_property
    def check_context(self) -> StepContext:
        """What steps are checked on before anything runs."""
        # Several rows may have one student: it is built once, and copied where it is changed.
        build = lru_cache(2)(self.fresh)
        return replace(self.step_context(0, False), enters=self.start, build=build)

    @property
    def step_inputs(self) -> dict[str, object]:
        """What every step's result depends on, besides its input, its text and named teachers."""
        return {
            "data": self.data.identity(),
            "task": self.data.task.describe(),
            "device": str(self.device),
            "precision": [self.precision, "tuned"] if self.tune else [self.precision],
            "threads": self.step_threads,
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
            "code": {str(path): sha256(path.read_bytes()) for path in self._code_of_models()},
            **self.code_of_data,
        }

    @property
    def code_of_data(self) -> dict[str, object]:
        """The code of the data's task and splits, where it is not among that of every step."""
        found = sources_of_data(self.data)
        return {"code of data": found} if found else {}

    def _code_of_models(self) -> set[Path]:
        """Return the allowed files, except one that only the metric names: no step runs it."""
        allowed = {path.expanduser().resolve() for path in self.allow_code}
        if self.metric is None or self.metric.file is None:
            return allowed
        named = (*self.suite.teachers.values(), *self.suite.students.values())
        names = {self.suite.model, *(one.model for one in named)}
        names |= {name for row in self.rows if row.chain for name in row.chain.students}
        sources = set().union(*(model_sources(name) for name in names))
        places = {Path(source).expanduser().resolve() for source in sources}
        return allowed - ({self.metric.file} - places)


def make_plan(
    suite: Suite,
    *,
    data: Data | None = None,
    model: nn.Module | None = None,
    metric: Function | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
    data_root: Path | None = None,
    device: str | torch.device = "auto",
    allow_code: Collection[Path] = (),
    step_threads: int | None = None,
    ranks: int | None = None,
    writes: Mapping[str, Path] | None = None,
) -> Plan:
    """Look everything up, build every model once, and refuse what cannot work.

    `data`, `model` (an instance), `metric` (a function) and `teachers` (instances, by names that
    the suite has) take the place of the suite's names, for Python users. A `torch.device` is taken
    as it is, without a look whether it is there. `ranks` processes share every training, by default
    one for every GPU. `writes`: the folders that are written to, by option; none may lie among
    the images that are read. Raises UserError.
    """
    if data is not None and suite.options:
        raise UserError(
            f"{', '.join(suite.options)} belong to a data source by name: give them to "
            f"from_arrays() or load_data() instead"
        )
    # Parsing is cheap and data may be large: a typing error is reported at once.
    if data is None:
        refuse_unknown(suite.data)
    baseline, rows = rows_of(
        suite, suite.weights is not None or model is not None, named=model is None
    )
    _check_run(allow_code, step_threads)
    read = {suite.calibration or "", *_transfer_names(rows), suite.data if data is None else ""}
    _check_written(writes or {}, read)
    judge = find_metric(suite.metric if metric is None else metric, allow_code)
    suite = _with_weights_found(suite, data_root)
    files = data is None and is_files(suite.data)
    known = pretrained(suite.model, suite.weights, assume=files) if model is None else None
    own_data = data is not None
    data = _data(suite, data, data_root, known)
    judge = judge or figure_of(data.task)
    if judge is not None:
        judge.check(data.task)
    device = _device(device)
    seed_everything(suite.seeds[0])
    build = Models(data, allow_code)
    start = build.start(suite, model, trained=baseline is not None, given=own_data)
    own_teachers = dict(teachers or {})
    named_teachers, students = build.teachers(suite, own_teachers), build.students(suite)
    plan = Plan(
        suite=suite,
        data=data,
        start=start,
        baseline=baseline,
        rows=rows,
        teachers=named_teachers,
        students=students,
        transfers=_transfers(rows, data, data_root),
        device=device,
        precision=usual_precision(device) if suite.precision == "auto" else suite.precision,
        tune=suite.precision == "auto",
        threads=suite.threads or cpu_threads(),
        allow_code=tuple(allow_code),
        metric=judge,
        instance=None if model is None else start.module,
        own_teachers=own_teachers,
        given=own_data or bool(teachers) or not (model is None and metric is None),
        step_threads=step_threads or cpu_threads(),
        ranks=ranks or (torch.cuda.device_count() if device.type == "cuda" else 1),
        weights={name: one.words for name, one in build.loaded.items()},
        whole=suite.weights is not None and not build.loaded[""].new_head,
        promised=known.accuracy if known and (known.classes,) == data.task.output_shape() else None,
    )
    if baseline is not None:
        baseline.check(plan.check_context)
    for row in rows:
        _check_row(row, plan)
    return plan


def with_chains(plan: Plan, texts: Sequence[str]) -> Plan:
    """Return a plan of the same data and models with rows of other chains.

    They may name no transfer set, since none was read. Raises UserError for what cannot work.
    """
    suite = replace(plan.suite, chains=tuple(texts))
    has_weights = suite.weights is not None or plan.instance is not None
    baseline, rows = rows_of(suite, has_weights, named=plan.instance is None)
    if repr(baseline) != repr(plan.baseline):
        raise UserError(f"the baseline is {plan.origin}, and these chains start from {baseline!r}")
    plan = replace(plan, suite=suite, rows=rows)
    for row in rows:
        _check_row(row, plan)
    return plan


def _check_run(allow_code: Collection[Path], step_threads: int | None) -> None:
    """Refuse what is wrong whatever the suite: files, threads, plug-ins that are no runtimes."""
    for path in allow_code:
        if not path.is_file():
            raise UserError(f"--allow-code: there is no file {path}")
    if step_threads is not None and step_threads < 1:
        raise UserError(f"step_threads must be at least 1, not {step_threads}")
    runtimes()  # a plug-in that is none is refused now, not when files are timed


def _check_written(writes: Mapping[str, Path], sources: Collection[str]) -> None:
    """Refuse to write among image files: the processes of steps would read other data."""
    for source in sorted(filter(is_files, sources)):
        name = source.partition(":")[2]
        folder = Path(name).expanduser()
        for option, place in writes.items():
            if name and would_read(folder, place):
                raise UserError(
                    f"{option} {place} lies among the images of {folder}, and what is written "
                    f"there would be read with them: give a folder elsewhere"
                )


def _data(
    suite: Suite, data: Data | None, data_root: Path | None, known: Pretrained | None
) -> Data:
    """Return a suite's data, or that given; prepared as what is known of the weights says."""
    if data is None:
        usual: dict[str, Any] = {}
        if known is not None:
            usual = {"usual": known.settings, "usual_from": known.origin}
            usual["usual_data"] = known.data
        options: dict[str, Any] = {**usual, **suite.options}
        with stage(f"reading {suite.data}"):
            data = load_data(suite.data, data_root, **options)
        mention(data.words())
        for line in _input_lines(data):
            mention(line)
    else:
        _check_classes(data)
    if suite.calibration is not None:
        with stage(f"reading {suite.calibration}"):
            data = calibrated(data, suite.calibration, data_root)
    return splits_for(suite.splits, data)


def _input_lines(data: Data) -> list[str]:
    """Return the lines that say how inputs are prepared; none where the task does not say it."""
    words = data.task.input_words()
    lines = TextWrapper(COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return lines.wrap(f"preprocessing: {words}") if words else []


def _with_weights_found(suite: Suite, data_root: Path | None) -> Suite:
    """Look for files of weights as they are named, then below the data root."""

    def find(weights: str | None, option: str) -> str | None:
        if weights is None or weights == DEFAULT or file_and_key(weights)[0].exists():
            return weights
        below = find_root(data_root) / weights
        if file_and_key(below)[0].exists():
            return str(below)
        near = nearest_weights(file_and_key(weights)[0]) or nearest_weights(file_and_key(below)[0])
        raise UserError(
            f"there is no file of weights {weights!r}, neither here nor below the data root "
            f"{find_root(data_root)}: name it with {option}{near}"
        )

    teachers = {
        name: replace(named, weights=find(named.weights, f"--teacher {name} {named.model} FILE"))
        for name, named in suite.teachers.items()
    }
    students = {
        name: replace(named, weights=find(named.weights, f"--student {name} {named.model} FILE"))
        for name, named in suite.students.items()
    }
    weights = find(suite.weights, "--weights FILE")
    return replace(suite, weights=weights, teachers=teachers, students=students)


def _device(name: str | torch.device) -> torch.device:
    if isinstance(name, torch.device):
        return name
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, not {name!r}")
    cuda = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UserError("device is cuda, and torch finds no CUDA device here")
    return torch.device("cuda" if cuda else "cpu")


def _transfer_names(rows: Sequence[Row]) -> set[str]:
    return {name for row in rows if row.chain for name in row.chain.transfers}


def _transfers(rows: Sequence[Row], data: Data, data_root: Path | None) -> Mapping[str, Transfer]:
    """Read the transfer sets that chains name."""
    found = {}
    for name in sorted(_transfer_names(rows)):
        with stage(f"reading {name}"):
            found[name] = load_transfer(name, data, data_root)
    return found


def _check_classes(data: Data) -> None:
    """Refuse a task of one's own that does not choose among classes, as every figure assumes."""
    shape = data.task.output_shape()
    if len(shape) != 1 or shape[0] < 2:
        raise UserError(
            f"the outputs of the task {data.task.name!r} have the shape {shape} for one item; they "
            f"must be one number for each of two or more classes"
        )
    _, targets = data.test.fetch(torch.arange(min(1, len(data.test))))
    if targets.is_floating_point() or targets.ndim != 1:
        raise UserError(
            f"the targets of the task {data.task.name!r} are {targets.dtype} of shape "
            f"{tuple(targets.shape)} for one item; they must be the numbers of classes (int64, one "
            f"for each item)"
        )


def _check_row(row: Row, plan: Plan) -> None:
    """Refuse a row whose teachers or inputs are missing, or that trains what it cannot.

    Builds every student, which may be refused too.
    """
    context = replace(plan.check_context, teacher=plan.start)
    chain = plan.baseline if row.chain is None else row.chain
    if plan.data.untrainable and chain is not None and "train" in chain.needs:
        raise IllegalChain(f"{chain!r} trains, and {plan.data.untrainable}")
    model = plan.start
    for step, _ in () if chain is None else leaves(chain):
        for name in sorted(step.students):
            model = context.student(name)
        heads = heads_of(model.module)
        if isinstance(step, Training) and heads is not None and heads.untrainable:
            raise IllegalChain(f"{step!r} cannot train: {heads.untrainable}")
    if row.chain is None:
        return
    for name in sorted(row.chain.teachers - {"baseline"}):
        if name not in plan.teachers:
            raise unknown("teacher", name, ["baseline", "input", *plan.teachers])
    for need in sorted(row.chain.needs):
        if not context.has(need):
            raise IllegalChain(f"{row.text} needs {need}, and none was given")
    row.chain.check(context)
