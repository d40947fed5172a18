"""ONNX files as something to time on a GPU: onnxruntime's CUDA and TensorRT providers.

Inputs and outputs stay on the device (I/O binding), so that no copy is in the seconds. The host's
clock is read around a run that ends with onnxruntime waiting for the device: onnxruntime has a
stream of its own, on which torch's events see nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.runtimes.onnxruntime_cpu import open_session, session_options
from compress.timing.cuda.modules import differs
from compress.timing.interleave import Candidate
from compress.timing.worker import feed_indices


@dataclass(frozen=True)
class Provider:
    """One of onnxruntime's execution providers, and where its tensors lie."""

    name: str
    words: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = "cuda"
    behind: tuple[Provider, ...] = ()
    """Providers that take what this one leaves, before the CPU does."""
    libraries: str = "CUDA and cuDNN"
    """Whose libraries it loads when it starts."""


CUDA = Provider(
    "CUDAExecutionProvider",
    "CUDA provider",
    # As in torch: float32 means float32, and the fastest algorithm is looked for.
    {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"},
)
TENSORRT = Provider(
    "TensorrtExecutionProvider",
    "TensorRT provider",
    {"device_id": "0"},
    behind=(CUDA,),
    libraries="TensorRT, CUDA and cuDNN",
)


def absent(provider: Provider) -> str:
    """Return why files cannot be run by a provider here, or ''."""
    import onnxruntime

    if provider.name in onnxruntime.get_available_providers():
        return ""
    return f"onnxruntime here has no {provider.words}"


def tf32(provider: Provider) -> bool:
    """Return whether a provider may round what float32 products multiply to TF32 (10 bits).

    TensorRT has no option for it (onnxruntime's issue 26029). NVIDIA's libraries leave it where
    the variable NVIDIA_TF32_OVERRIDE is 0.
    """
    if provider.device != "cuda" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    return provider.options.get("use_tf32") != "0"


def open_file(path: Path, provider: Provider) -> Any:
    """Open a file with a provider. Raises RuntimeError where the provider does not start."""
    options = session_options(
        session__record_ep_graph_assignment_info="1",
        # All files are open at a time: threads that wait by spinning would slow down the others.
        session__intra_op__allow_spinning="0",
    )
    if provider.device == "cuda":
        _preload()
    session = open_session(
        path,
        options,
        [(one.name, dict(one.options)) for one in (provider, *provider.behind)],
        enable_fallback=0,  # else it prints, and goes on without the provider
    )
    # A provider whose libraries are missing is left out with no more than a log line.
    if provider.name not in session.get_providers():
        raise RuntimeError(
            f"onnxruntime could not start its {provider.words}: its {provider.libraries} "
            f"libraries are missing, or of another version than it was built for"
        )
    return session


@functools.cache
def _preload() -> None:
    """Let onnxruntime find the CUDA and cuDNN libraries that were installed as Python packages."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find; whether the provider starts is seen with the session.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            onnxruntime.preload_dlls()


def left_over(session: Any, provider: Provider) -> str:
    """Say which of a file's nodes other providers run, or ''. For each, data may be copied."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ""  # an onnxruntime that cannot tell
    others: dict[str, Counter[str]] = {}
    total = 0
    for part in session.get_provider_graph_assignment_info():
        operators = [node.op_type for node in part.get_nodes()]
        total += len(operators)
        if part.ep_name != provider.name:
            others.setdefault(part.ep_name, Counter()).update(operators)
    told = [
        f"{sum(count.values())} of {total} nodes run in the "
        f"{name.removesuffix('ExecutionProvider')} provider ({', '.join(sorted(count))})"
        for name, count in sorted(others.items())
    ]
    return "; ".join(told)


def file_candidate(
    session: Any,
    provider: Provider,
    samples: Sequence[np.ndarray],
    expected: np.ndarray,
    batch: int,
    tolerance: float,
) -> Candidate:
    """Return a session over rotating real samples on the device, to time and check.

    `expected` are the file's outputs on the CPU, (M, classes). Raises ValueError if the samples
    do not suit the file.
    """
    import onnxruntime

    rows = feed_indices(len(samples[0]), batch)
    names = [given.name for given in session.get_inputs()]
    bindings = []
    for row in rows:
        binding = session.io_binding()
        for name, data in zip(names, samples, strict=True):
            array = np.ascontiguousarray(data[row])
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, provider.device, 0)
            binding.bind_ortvalue_input(name, value)
        for made in session.get_outputs():
            binding.bind_output(made.name, provider.device, 0)
        bindings.append(binding)

    def call(index: int) -> Any:
        binding = bindings[index % len(bindings)]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    def check(index: int, binding: Any) -> str:
        outputs = binding.copy_outputs_to_cpu()[0]
        return differs(outputs, expected, rows[index % len(rows)], tolerance)

    return Candidate(call, check)
