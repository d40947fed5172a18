"""Text that fits a width, and that means nothing to a terminal or to a shell.

Widths are in terminal columns: an East Asian wide character takes two.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable

Measure = Callable[[str], int]


def clean(text: str) -> str:
    """Return the text on one line: white space as single blanks, control characters in hex."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )


def width(text: str) -> int:
    """Return how many columns a text takes."""
    wide = 0 if text.isascii() else sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide


def cut(text: str, limit: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is wider than `limit`."""
    if width(text) <= limit:
        return text
    text = text[: limit - 1]
    while width(text) > limit - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, limit: int, measure: Measure = width) -> list[str]:
    """Break prose at blanks into lines of at most `limit` columns; longer words break anywhere."""
    return pack(re.findall(r"\S+\s*", text), limit, limit, measure)


def wrap_chain(text: str, limit: int, measure: Measure = width) -> list[str]:
    """Break a chain before an arrow, else after a comma or an opening parenthesis, else anywhere.

    What continues a step is indented by two blanks.
    """
    lines: list[str] = []
    current = ""
    for step in re.split(r" (?=-> )", text):
        joined = f"{current} {step}" if current else step
        if measure(joined) <= limit:
            current = joined
            continue
        lines += [current] if current else []
        parts = pack(re.findall(r"[^,(]*[,(] *|[^,(]+", step), limit, limit - 2, measure)
        if len(parts) == 1:
            current = parts[0]
        else:  # the next step starts on a line of its own, so that it is seen
            lines += [parts[0], *(f"  {part}" for part in parts[1:])]
            current = ""
    return [*lines, current] if current or not lines else lines


def pack(pieces: Iterable[str], first: int, later: int, measure: Measure = width) -> list[str]:
    """Fill lines with pieces in order: `first` columns in the first line, `later` in the others."""
    lines = [""]

    def is_full(more: str) -> bool:
        return measure((lines[-1] + more).rstrip()) > (later if lines[1:] else first)

    for piece in pieces:
        if lines[-1] and is_full(piece):
            lines.append("")
        for part in piece if is_full(piece) else [piece]:
            if is_full(part):
                lines.append("")
            lines[-1] += part
    return [line.strip() for line in lines]


def shell_lines(command: str, limit: int) -> list[str]:
    """Break a command for a POSIX shell into lines that, pasted together, run the same command."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a command: show it all the same
        return wrap(command, limit)
    lines = [""]
    for word in words:
        *full, last = _quoted_parts(word, limit - 2)
        if lines[-1] and (full or width(f"{lines[-1]} {last}") > limit - 2):
            lines[-1] += " \\"
            lines.append("")
        for part in full:
            lines[-1] += f"{part}\\"
            lines.append("")
        lines[-1] += f" {last}" if lines[-1] else last
    return lines


def _quoted_parts(word: str, limit: int) -> list[str]:
    # Quoted parts that touch, with an escaped end of line between them, are one word.
    parts = [""]
    for char in word:
        if parts[-1] and width(_quote(parts[-1] + char)) > limit:
            parts.append("")
        parts[-1] += char
    return [_quote(part) for part in parts]


def _quote(word: str) -> str:
    if "'" in word and not set(word) & set('"$`\\!'):
        return f'"{word}"'  # chains hold single quotes: shlex would write '"'"' for each
    return shlex.quote(word)
