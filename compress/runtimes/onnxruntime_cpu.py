"""onnxruntime's CPU provider: the runtime by which files are verified and judged.

All its sessions are made here, also those of the GPU's providers. Needs numpy and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import fspath
from typing import Any

import numpy as np

from compress.runtimes.base import DEFAULT_LEVEL, OnnxFile, Runtime
from compress.system.environment import cpu_threads

PROVIDER = "CPUExecutionProvider"
LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    DEFAULT_LEVEL: "ORT_ENABLE_ALL",
}
"""onnxruntime's optimization levels by our names."""
WARNINGS, ERRORS_TOO = 3, 4
"""What its log leaves out: what is raised is logged as well."""


def session_options(
    level: str = DEFAULT_LEVEL, silence: int = WARNINGS, threads: int = 0, **entries: str
) -> Any:
    """Return onnxruntime's options of a session (0 threads: its own choice).

    `entries` are config entries, with `__` for `.`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = silence
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    for name, value in entries.items():
        options.add_session_config_entry(name.replace("__", "."), value)
    return options


def open_session(
    onnx: OnnxFile, options: Any, providers: Sequence[Any] = (PROVIDER,), **more: Any
) -> Any:
    """Open a file, or the bytes of one, as an `onnxruntime.InferenceSession`.

    Raises onnxruntime's own errors for a file that it cannot run.
    """
    import onnxruntime

    model = onnx if isinstance(onnx, bytes) else fspath(onnx)
    return onnxruntime.InferenceSession(model, options, providers=list(providers), **more)


def versions() -> dict[str, str]:
    """Return what all runtimes of onnxruntime consist of."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


class OrtSession:
    """A session of onnxruntime as a `Session`, and what it may read as long as it is there."""

    def __init__(self, session: Any, lent: object = None) -> None:
        self.session, self.lent = session, lent
        self.names = [node.name for node in session.get_inputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs: np.ndarray = self.session.run(None, feed)[0]
        return outputs


class OnnxruntimeCpu(Runtime):
    """Files in onnxruntime, on the CPU."""

    name = "cpu"
    title = "onnxruntime"
    levels = ("disabled", "basic", "extended")

    def __init__(self) -> None:
        self.shared = False

    def absent(self) -> str:
        return ""  # this package depends on it

    def versions(self) -> Mapping[str, str]:
        return versions()

    def share_threads(self, threads: int) -> None:
        import onnxruntime

        # With a pool each, the spinning threads of one session slow down the next.
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        self.shared = True

    def open(self, onnx: OnnxFile, threads: int = 0, level: str = DEFAULT_LEVEL) -> OrtSession:
        options = session_options(level, threads=0 if self.shared else threads or cpu_threads())
        options.use_per_session_threads = not self.shared
        return OrtSession(open_session(onnx, options))
