"""What rows' notes say, for a terminal: each remark once, and the rows that it concerns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from compress.report.chains import row_list
from compress.results.table import Row


def shared(
    rows: Sequence[Row], notes: Sequence[Sequence[str]], labels: Mapping[str, str]
) -> list[str]:
    """Return all remarks of the rows' notes, with the rows before those that they concern.

    Remarks are one where they are equal to the letter: figures, names and reasons are the row's.
    """
    alike: dict[str, list[int]] = {}
    for row, own in enumerate(notes):
        for remark in dict.fromkeys(remark for note in own for remark in remarks(note)):
            alike.setdefault(remark, []).append(row)
    found: dict[tuple[int, ...], list[str]] = {}
    for remark, concerned in alike.items():
        found.setdefault(tuple(concerned), []).append(remark)
    return [
        f"[{_whose([rows[i] for i in concerned], rows, labels)}] {'; '.join(texts)}"
        for concerned, texts in found.items()
    ]


def remarks(note: str) -> list[str]:
    """Return the parts of a note: between semicolons that are not in parentheses."""
    parts, depth = [""], 0
    for piece in re.findall(r"; |[()]|[^;()]+|;", note):
        depth = max(0, depth + (piece == "(") - (piece == ")"))
        if piece == "; " and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return list(filter(None, parts))


def _whose(concerned: Sequence[Row], rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    return "all" if len(concerned) == len(rows) > 1 else row_list(concerned, labels)
