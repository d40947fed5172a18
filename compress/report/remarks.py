"""What rows' notes say, for a terminal: each remark once, and the rows that it concerns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from compress.report.chains import row_list
from compress.results.table import Row

MOST = 3
"""Rows whose figures stand beside each other in a remark that they share."""
_VARYING = re.compile(r"\([^()]*\)|(?<![\w.])[-+]?\d+(?:[.,]\d+)*")
"""What may differ in a remark that is the same: what is in parentheses, and figures."""


def shared(
    rows: Sequence[Row], notes: Sequence[Sequence[str]], labels: Mapping[str, str]
) -> list[str]:
    """Return all remarks of the rows' notes, with the rows before those that they concern.

    Remarks that differ in their figures alone are one, with the figures of all rows in their
    order: `a loss of 9.4/6.5 can't be ruled out`.
    """
    alike: dict[tuple[str, int], dict[int, str]] = {}
    for row, own in enumerate(notes):
        for remark in dict.fromkeys(remark for note in own for remark in remarks(note)):
            key, again = _VARYING.sub(lambda match: "\0\1"[match[0][0] == "("], remark), 0
            while row in alike.setdefault((key, again), {}):
                again += 1
            alike[key, again][row] = remark
    found: dict[tuple[int, ...], list[str]] = {}
    for by_row in alike.values():
        found.setdefault(tuple(by_row), []).append(_merged(list(by_row.values())))
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


def _merged(texts: Sequence[str]) -> str:
    """Return one text for some that differ in what may vary alone."""
    varying = [_VARYING.findall(text) for text in texts]
    merged = iter([_together(figures) for figures in zip(*varying, strict=True)])
    return _VARYING.sub(lambda match: next(merged), texts[0])


def _together(figures: Sequence[str]) -> str:
    if len(set(figures)) == 1:
        return figures[0]
    if figures[0].startswith("("):
        items = (item for figure in figures for item in figure[1:-1].split("; "))
        return f"({'; '.join(dict.fromkeys(items))})"
    return "/".join(figures) if len(figures) <= MOST else "…"


def _whose(concerned: Sequence[Row], rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    return "all" if len(concerned) == len(rows) > 1 else row_list(concerned, labels)
