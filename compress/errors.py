"""The errors that a user can cause, each with a sentence that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence


class UserError(ValueError):
    """A wrong call: bad input, found before any work is done. The command line exits with 2."""


class IllegalChain(UserError):
    """A chain, or a setting of one of its steps, that cannot work."""


class StepFailed(RuntimeError):
    """A step that was legal did not give a usable model."""


class RunStopped(RuntimeError):
    """A run that cannot go on, such as on a full disk. What it finished is kept."""


class CannotSave(ValueError):
    """A model that differs from a fresh build in a way that its file format cannot hold."""


def unknown(kind: str, name: str, known: Iterable[str], meant: Sequence[str] = ()) -> UserError:
    """Return an error that names the nearest known names of this kind, or what is `meant`."""
    names = sorted(known)
    question = _question(meant) if meant else nearest(name, names)
    return UserError(f"unknown {kind} {name!r}. {question}Known: {', '.join(names)}")


def nearest(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Return a question that names the nearest known names, as they are `shown`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    return _question([shown(one) for one in near])


def _question(names: Sequence[str]) -> str:
    return f"Did you mean {' or '.join(map(repr, names))}? " if names else ""


def first_line(error: object) -> str:
    """Return the first line of an error's text, which says what; the rest is advice."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def clause(error: object) -> str:
    """Return an error's text without its full stop: another sentence follows it."""
    return (str(error).strip() or type(error).__name__).removesuffix(".")


def out_of_memory(text: str) -> bool:
    """Whether an error of torch's or of onnxruntime's says that the device's memory is full."""
    return "out of memory" in text.lower() or "failed to allocate memory" in text.lower()
