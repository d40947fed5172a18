"""Which of our own files a result depends on: the imports of what ran, followed to their end."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from compress.system.files import digest, sha256

PACKAGE = Path(__file__).resolve().parents[2]
OUTSIDE = {"benchmark", "results", "report", "suites", "api", "cli", "__main__"}
"""What no technique may import, a plug-in's neither."""
IMPORT = re.compile(
    r"^[ \t]*(?:from (compress[\w.]*) import (\([^)]*\)|.*)|import (compress[\w.]*))", re.MULTILINE
)
FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?:(?:[ \t].*)?\n)+", re.MULTILINE)


@functools.cache
def code_digest(modules: frozenset[str]) -> str:
    """Return a hash of the files of some modules of ours."""
    return digest({module: sha256(files()[module].read_bytes()) for module in modules})


@functools.cache
def followed(*modules: str) -> frozenset[str]:
    """Return modules of ours and all that they import, inside functions too.

    A package's `__init__` counts where names are imported from it, not where it is passed on the
    way to a module: what it offers to others matters to nobody there.
    """
    found: set[str] = set()
    ahead = list(modules)
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += imported(one)
    return frozenset(found)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of ours that one imports when it runs.

    A test holds this against the parsed files, and that nothing is imported in other ways.
    """
    text = FOR_TYPES.sub("", files()[module].read_text())
    found: set[str] = set()
    for base, names, plain in IMPORT.findall(text):
        wanted = re.findall(r"\w+", names)
        inside = {f"{base}.{name}" for name in wanted if f"{base}.{name}" in files()}
        found |= inside if len(inside) == len(wanted) and wanted else {*inside, base or plain}
    return frozenset(found)


def techniques_may_import() -> frozenset[str]:
    """Return all modules of ours that a plug-in's technique may import."""
    rooms = {module: module.split(".")[1:2] for module in files()}
    return frozenset(module for module, room in rooms.items() if room and room[0] not in OUTSIDE)


@functools.cache
def files() -> dict[str, Path]:
    """Return the file of every module of ours, by the module's name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("compress", *path.relative_to(PACKAGE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found
