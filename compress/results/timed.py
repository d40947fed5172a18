"""What a latency refers to: machine, runtime and setting, and the columns of its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.timing.setting import DEFAULT, parse_setting

Known = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a timing; `compares` with the baseline."""

    name: str
    words: str
    source: str
    unit: str
    compares: bool = False


LATENCY = (
    Figure("ms_p50", "median of a call", "raw seconds of calls", "ms"),
    Figure("ms_p90", "90th percentile of calls", "raw seconds of calls", "ms"),
    Figure("ms_iqr", "how far half of the calls lie apart", "raw seconds of calls", "ms"),
    Figure("per_s", "items a second", "the median of a call", "items/s"),
    Figure("speedup", "times as fast as the baseline", "ratios within rounds", "times", True),
    Figure("speedup_low", "lower end of its 95 % interval", "bootstrap", "times", True),
    Figure("speedup_high", "upper end of its 95 % interval", "bootstrap", "times", True),
    Figure(
        "verdict",
        "faster, slower or indistinguishable",
        "the A/A control, and the p-values of all rows, by Holm",
        "",
        True,
    ),
)


@dataclass(frozen=True)
class Timed:
    """What was timed, and what is known of the timing as a whole."""

    setting: str
    words: str
    """The setting as a reader says it, such as `batch 1, 1 thread`."""
    where: str
    """With it the machine and runtime, such as `on arm_4t at batch 1, 1 thread`."""
    names: Mapping[str, str]
    """Name of a figure of `LATENCY` -> its column."""
    machine: str = ""
    """The short name of another machine; '' for the run's own."""
    runtime: str = ""
    """'' for onnxruntime's CPU provider."""
    title: str = ""
    """The runtime's name for people."""
    header: str = ""
    explained: str = ""
    known: Known = field(default_factory=dict)
    """Its A/A control, what speed-ups divide, and the effort."""

    @property
    def trusted(self) -> bool:
        return self.known.get("trusted") is not False


def timed_files(
    setting: str, machine: str = "", runtime: str = "", title: str = "", known: Known | None = None
) -> Timed:
    """Return what files are timed as at a setting of threads and items at once."""
    prefix = (f"on_{machine}_" if machine else "") + (f"{runtime}_" if runtime else "") + setting
    words = parse_setting(setting).words
    where = " ".join(
        part
        for part in (
            f"on {machine}" if machine else "",
            f"in {title or runtime}" if runtime else "",
            f"at {words}",
        )
        if part
    )
    names = {figure.name: f"{prefix}_{figure.name}" for figure in LATENCY}
    return Timed(setting, words, where, names, machine, runtime, title, known=known or {})


@dataclass(frozen=True)
class Form:
    """One way to run rows on the GPU; `speed` begins the columns of its comparison, if any."""

    column: str
    words: str
    header: str
    explained: str = ""
    speed: str = ""
    file: bool = False


GPU = "cuda"
"""The runtime of everything that is timed on the GPU."""
FORMS = (
    Form(
        "cuda_torch_ms_p50",
        "float32",
        "float32",
        "float32, float16, bfloat16: the PyTorch module, by CUDA events.",
        speed="cuda",
    ),
    Form("cuda_torch_float16_ms_p50", "float16", "float16"),
    Form("cuda_torch_bfloat16_ms_p50", "bfloat16", "bfloat16"),
    Form("cuda_graph_ms_p50", "CUDA graph", "graph", "graph: float32, replayed as a CUDA graph."),
    Form("cuda_batch32_per_s", "batch 32", "items/s", "items/s: float32, in batches of 32."),
    Form(
        "cuda_ms_p50",
        "CUDA provider",
        "CUDA",
        "CUDA: the file, in onnxruntime.",
        speed="cuda_file",
        file=True,
    ),
    Form(
        "cuda_trt_ms_p50",
        "TensorRT provider",
        "TensorRT",
        "TensorRT: the file, in onnxruntime.",
        file=True,
    ),
)
PEAK = "cuda_peak_bytes"


def timed_on_gpu(form: Form, known: Known | None = None) -> Timed:
    """Return what is timed on the GPU in one form."""
    names = {"per_s" if form.column.endswith("per_s") else "ms_p50": form.column}
    if form.speed:
        names |= {f.name: f"{form.speed}_{f.name}" for f in LATENCY if f.compares}
    return Timed(
        form.column,
        form.words,
        f"on the GPU ({form.words})",
        names,
        runtime=GPU,
        title="GPU",
        header=form.header,
        explained=form.explained,
        known=known or {},
    )


def timings(about: Mapping[str, Any]) -> tuple[Timed, ...]:
    """Return all that was timed, of a run's description as it is derived."""
    return tuple(Timed(**one) for one in about.get("timings") or ())


def described(timed: Iterable[Timed]) -> list[dict[str, Any]]:
    """Return what a run's description holds of what was timed (JSON)."""
    return list(map(asdict, timed))


def of_files(about: Mapping[str, Any], machine: str = "", runtime: str = "") -> tuple[Timed, ...]:
    """Return what was timed on a machine in a runtime, by default here in onnxruntime's CPU's."""
    return tuple(t for t in timings(about) if (t.machine, t.runtime) == (machine, runtime))


def main_timed(about: Mapping[str, Any]) -> Timed:
    """Return the setting of the main table and picture: `cpu` if it was timed."""
    return next(iter(of_files(about)), timed_files(DEFAULT[0]))


def in_order(settings: Iterable[str]) -> tuple[str, ...]:
    """Return latency settings as a table shows them: the default ones first."""

    def rank(name: str) -> tuple[int, int, int]:
        setting = parse_setting(name)
        first = DEFAULT.index(name) if name in DEFAULT else len(DEFAULT)
        return first, setting.batch, setting.threads

    return tuple(sorted(settings, key=rank))
