"""ONNX files on a GPU: onnxruntime's CUDA and TensorRT providers.

Inputs and outputs can stay on the device (I/O binding), so that no copy is in what is timed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.runtimes.base import DEFAULT_LEVEL, OnnxFile, Runtime
from compress.runtimes.onnxruntime_cpu import OrtSession, open_session, session_options, versions


@dataclass(frozen=True)
class Provider(Runtime):
    """One of onnxruntime's execution providers, by its own name, and where its tensors lie."""

    name: str
    title: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = "cuda"
    behind: tuple[Provider, ...] = ()
    """Providers that take what this one leaves, before the CPU does."""
    libraries: str = "CUDA and cuDNN"
    """Whose libraries it loads when it starts."""

    def absent(self) -> str:
        import onnxruntime

        present = self.name in onnxruntime.get_available_providers()
        return "" if present else f"onnxruntime here has no {self.title}"

    def versions(self) -> Mapping[str, str]:
        return versions()

    def tf32(self) -> bool:
        """Return whether it may round what float32 products multiply to TF32 (10 bits).

        TensorRT has no option for it (onnxruntime's issue 26029). NVIDIA's libraries never do it
        where the variable NVIDIA_TF32_OVERRIDE is 0.
        """
        if self.device != "cuda" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
            return False
        return self.options.get("use_tf32") != "0"

    def open(self, onnx: OnnxFile, threads: int = 0, level: str = DEFAULT_LEVEL) -> ProviderSession:
        """Open a file. Raises RuntimeError where the provider does not start."""
        options = session_options(
            level,
            threads=threads,
            session__record_ep_graph_assignment_info="1",
            # All files are open at a time: spinning threads would slow down the others.
            session__intra_op__allow_spinning="0",
        )
        if self.device == "cuda":
            _preload()
        session = open_session(
            onnx,
            options,
            [(one.name, dict(one.options)) for one in (self, *self.behind)],
            enable_fallback=0,  # else it prints, and goes on without the provider
        )
        # A provider whose libraries are missing is left out with no more than a log line.
        if self.name not in session.get_providers():
            raise RuntimeError(
                f"onnxruntime could not start its {self.title}: its {self.libraries} "
                f"libraries are missing, or of another version than it was built for"
            )
        return ProviderSession(session, self)


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


@functools.cache
def _preload() -> None:
    """Let onnxruntime find the CUDA and cuDNN libraries that were installed as Python packages."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find; whether the provider starts is seen with the session.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            onnxruntime.preload_dlls()


class ProviderSession(OrtSession):
    """A file that a provider has opened."""

    def __init__(self, session: Any, provider: Provider) -> None:
        super().__init__(session)
        self.provider = provider

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Any:
        """Copy inputs to the device; return what `run_bound` takes."""
        import onnxruntime

        device, binding = self.provider.device, self.session.io_binding()
        for name, array in inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
            binding.bind_ortvalue_input(name, value)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, device, 0)
        return binding

    def run_bound(self, binding: Any) -> Any:
        """Run on bound inputs and wait for the device; `copy_outputs_to_cpu()` of it fetches them.

        onnxruntime has a stream of its own, on which torch's events see nothing: this is timed by
        the host's clock.
        """
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    def left_over(self) -> str:
        """Say which nodes other providers run, or ''. For each, data may be copied."""
        if not hasattr(self.session, "get_provider_graph_assignment_info"):
            return ""  # an onnxruntime that does not report it
        others: dict[str, Counter[str]] = {}
        total = 0
        for part in self.session.get_provider_graph_assignment_info():
            operators = [node.op_type for node in part.get_nodes()]
            total += len(operators)
            if part.ep_name != self.provider.name:
                others.setdefault(part.ep_name, Counter()).update(operators)
        return "; ".join(
            f"{count.total()} of {total} nodes run in the "
            f"{name.removesuffix('ExecutionProvider')} provider ({', '.join(sorted(count))})"
            for name, count in sorted(others.items())
        )
