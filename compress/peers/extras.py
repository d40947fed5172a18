"""Tools that may be missing, since only an extra brings them."""

from __future__ import annotations

from importlib.util import find_spec

from compress.compressor import Compressor
from compress.errors import IllegalChain


def importable(module: str) -> tuple[str, ...]:
    """Return the module, if it is installed."""
    return (module,) if find_spec(module.partition(".")[0]) else ()


def require_installed(step: Compressor, module: str, title: str, extra: str) -> None:
    """Raise IllegalChain where a step's tool is missing."""
    if not find_spec(module):
        raise IllegalChain(
            f"{step.name()} needs {title}, which is not installed: "
            f"pip install 'compress-models[{extra}]'"
        )
