"""The CUDA rows of `digits`, and of `cifar10` where its data and weights are there.

    python benchmarks/measurement/gpu.py --out reports/measurement [--work FOLDER]
        [--seconds 30] [SUITE ...]

Needs a GPU: without one it writes nothing, says so and exits with 2. The suites run whole (on a
GPU in minutes) into FOLDER, by default a temporary one; the report holds their GPU columns.
Their timing takes `--seconds` on the GPU, and as many on the CPU.

On a machine that reaches no package registry: where one can be reached, fetch what is missing
there for its Python, such as

    pip download --no-deps --only-binary=:all: --python-version 3.12 \\
        --platform manylinux_2_28_x86_64 -d wheels onnxscript onnx onnx-ir

copy the checkout and `wheels` over, and there

    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. python benchmarks/measurement/gpu.py --out reports/measurement

`digits` needs no download. For `cifar10`, take its data and weights along and name their folder
in COMPRESS_DATA_ROOT. The columns of onnxruntime's providers need `onnxruntime-gpu` in the place
of `onnxruntime` (some 300 MB); without it they hold the reason instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trials import publish, table

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import load_suite
from compress.benchmark.run import RunOptions, run_plan
from compress.errors import UserError
from compress.results.derive import read_results
from compress.results.table import Row
from compress.results.timed import GPU, Timed, of_files
from compress.system.cuda import Cuda

MS = {
    "float32": "cuda_torch_ms_p50",
    "float16": "cuda_torch_float16_ms_p50",
    "bfloat16": "cuda_torch_bfloat16_ms_p50",
    "graph": "cuda_graph_ms_p50",
    "ORT CUDA": "cuda_ms_p50",
    "ORT TensorRT": "cuda_trt_ms_p50",
}
HEAD = ("chain", *MS, "items/s (32)", "speed-up", "verdict", "peak MB")
LEGEND = (
    "Milliseconds of one item, medians; float32 to graph: the module in torch, by CUDA events, "
    "on an idle device, in the faster memory format, TF32 off; graph: float32 replayed as a CUDA "
    "graph, the copy of its input included; ORT: the deployed file in onnxruntime's providers, "
    "inputs and outputs on the device, by the host's clock; items/s: float32 in batches of 32; "
    "speed-up: of float32 over the baseline, with its 95 % interval over repetitions in one "
    "process; peak MB: tensors at one item in float32, weights included. A dash has its reason "
    "below.\n"
)


def run_suite(name: str, folder: Path, seconds: float) -> tuple[Sequence[Row], Sequence[Timed]]:
    """Run a built-in suite; return its rows, and what was timed on the GPU."""
    suite = replace(load_suite(name), timing_seconds=seconds)
    with_gpu = make_plan(suite, device="cuda")
    run_plan(with_gpu, folder, RunOptions(command=f"compress-models bench {name}"))
    found = read_results(folder)
    return found.rows, of_files(found.about, runtime=GPU)


def lines(rows: Iterable[Row]) -> Iterator[list[object]]:
    for row in rows:
        per_second, peak = row.get("cuda_batch32_per_s"), row.get("cuda_peak_bytes")
        yield [
            f"`{row['chain']}`",
            *(_number(row.get(column)) for column in MS.values()),
            "-" if per_second is None else f"{per_second:.0f}",
            _speedup(row),
            row.get("cuda_verdict") or "-",
            "-" if peak is None else f"{peak / 1e6:.1f}",
        ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _speedup(row: Mapping[str, Any]) -> str:
    value, low, high = (row.get(f"cuda_speedup{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def notes(rows: Iterable[Row]) -> str:
    """Return what the rows say of their GPU figures, each sentence once with its rows."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if text := row.get("cuda_note"):
            said.setdefault(text, []).append(f"`{row['chain']}`")
    return "".join(f"- {', '.join(chains)}: {text}\n" for text, chains in said.items())


def controls(found: Iterable[Timed]) -> str:
    """Return what the A/A control of every column found."""
    keys = ("control", "control_low", "control_high", "margin", "bar", "trusted", "processes")
    head = ("column", *(key.removeprefix("control_") for key in keys))
    return table(head, ([one.setting, *(_told(one.known[key]) for key in keys)] for one in found))


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sections(suites: Iterable[str], work: Path, seconds: float) -> Iterator[str]:
    for name in suites:
        try:
            rows, timed = run_suite(name, work / name, seconds)
        except UserError as error:
            yield f"## {name}\n\nNot run: {error}\n"
            continue
        yield f"## {name}\n"
        yield table(HEAD, lines(rows))
        yield notes(rows)
        yield "A/A: the baseline against a second copy of itself, column by column.\n"
        yield controls(timed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", default=["digits", "cifar10"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    device = Cuda()
    if reason := device.absent():
        print(f"{reason}: this report needs one, and nothing was written", file=sys.stderr)
        return 2
    about = ", ".join(f"{key} {value}" for key, value in device.about().items())
    with tempfile.TemporaryDirectory() as folder:
        parts = list(sections(options.suites, options.work or Path(folder), options.seconds))
    command = (
        f"python benchmarks/measurement/gpu.py --out reports/measurement "
        f"--seconds {options.seconds:g} {' '.join(options.suites)}"
    )
    publish(options.out / "gpu.md", "GPU rows", [f"Device: {about}.\n", LEGEND, *parts], command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
