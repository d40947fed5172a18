"""What runs ONNX files: onnxruntime on the CPU, and the runtimes of plug-ins.

Needs numpy and onnxruntime alone, so that it works where models are deployed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from compress.errors import UserError, unknown
from compress.runtimes.base import Runtime
from compress.runtimes.onnxruntime_cpu import OnnxruntimeCpu

GROUP = "compress.runtimes"
BUILT_IN: tuple[type[Runtime], ...] = (OnnxruntimeCpu,)


@functools.cache
def runtimes() -> Mapping[str, Runtime]:
    """Return every runtime by its name, those of installed packages included.

    The first is the one by which files are judged. Raises UserError for a plug-in that can't be
    loaded, that is no Runtime, or whose name is in use or not of letters alone.
    """
    known = {cls.name: cls() for cls in BUILT_IN}
    for entry in entry_points(group=GROUP):
        with _loading(entry.value):
            cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Runtime)):
            raise UserError(f"the plug-in {entry.value} is not a Runtime")
        if cls.name in known or not (cls.name.isascii() and cls.name.isalpha()):
            raise UserError(
                f"the runtime {entry.value} is called {cls.name!r}: columns begin with the name, "
                f"so it must be of letters alone, and none of {', '.join(known)}"
            )
        with _loading(entry.value):
            known[cls.name] = cls()
    return known


@contextlib.contextmanager
def _loading(plug_in: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a foreign module does at its import
        raise UserError(
            f"the runtime {plug_in} of an installed package can't be loaded "
            f"({type(error).__name__}: {error}): mend or uninstall the package"
        ) from error


def why_absent(runtime: Runtime) -> str:
    """Return why files cannot be run in a runtime here; '' if they can.

    Whatever a plug-in raises is a reason: by then models were trained, and other runtimes wait.
    """
    try:
        if reason := runtime.absent():
            return reason
        dict(runtime.versions())
    except Exception as error:
        return f"its plug-in failed ({type(error).__name__}: {error})"
    return ""


def runtime_named(name: str) -> Runtime:
    """Return a runtime; '' is the one by which files are judged. Raises UserError."""
    known = runtimes()
    if name and name not in known:
        raise unknown("runtime", name, known)
    return known[name] if name else next(iter(known.values()))
