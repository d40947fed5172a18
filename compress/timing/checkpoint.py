"""The results so far of a collection, a line per process, so that one that was stopped goes on.

A process of a minute ago is as good as one of now: only seconds within a process are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.system.files import append_line, digest, sha256_file

CODE = Path(__file__).resolve().parent


def question(
    files: Mapping[str, Path], arrays: Sequence[np.ndarray], other: Mapping[str, Any]
) -> str:
    """Return a hash of what is timed: files, what is fed in, `other` (JSON), and by what code."""
    fed = hashlib.sha256()
    for array in arrays:
        fed.update(f"{array.dtype} {array.shape}".encode())
        fed.update(np.ascontiguousarray(array).data)
    return digest(
        {
            "files": [[name, sha256_file(path)] for name, path in files.items()],
            "fed": fed.hexdigest(),
            "code": {path.name: sha256_file(path) for path in CODE.glob("*.py")},
            **other,
        }
    )


class Checkpoint:
    """Lines of a file that all answer one question; other lines are ignored.

    Without a path nothing is saved.
    """

    def __init__(self, path: Path | None, question: str) -> None:
        self.path = path
        self.question = question

    def read(self) -> list[dict[str, Any]]:
        """Return what was saved; a file that answers another question only is removed."""
        if self.path is None or not self.path.exists():
            return []
        lines = map(_parsed, self.path.read_bytes().splitlines())
        saved = [line["found"] for line in lines if line.get("question") == self.question]
        if not saved:
            self.path.unlink()
        return saved

    def add(self, result: Mapping[str, Any]) -> None:
        if self.path is not None:
            append_line(self.path, {"question": self.question, "found": result})


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:  # half a line: the machine went down while it was written
        return {}
    return line if isinstance(line, dict) else {}
