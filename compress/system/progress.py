"""Progress bars, on a terminal only, also of a process whose output goes to a log."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

_terminal: TextIO | None = None


def keep_terminal() -> None:
    """Remember where bars are drawn, before this process sends its errors to a log."""
    global _terminal
    if sys.stderr is not None and os.isatty(2):
        _terminal = os.fdopen(os.dup(2), "w", buffering=1)


def bar(shown: bool, **options: Any) -> tqdm[Any]:
    """Return a bar with tqdm's options, disabled unless it is wanted and there is a terminal."""
    stream = _terminal or sys.stderr
    return tqdm(file=stream, disable=not (shown and stream.isatty()), **options)
