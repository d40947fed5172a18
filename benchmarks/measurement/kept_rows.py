"""Rows kept line by line as they come, so that a stopped benchmark goes on, and their report."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compress.system.environment import cpu_info
from compress.system.files import append_line, write_atomic

Row = dict[str, Any]


class KeptRows:
    """The rows of a JSON-lines file; of those with equal keys, the last counts."""

    def __init__(self, path: Path, *key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> dict[tuple[Any, ...], Row]:
        """Return the rows by their keys, also those that another process has added."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {tuple(row[name] for name in self.key): row for row in map(json.loads, lines)}

    def ordered(self, keys: Iterable[tuple[Any, ...]]) -> list[Row]:
        """Return the rows that there are, in the order of these keys."""
        rows = self.read()
        return [rows[key] for key in keys if key in rows]

    def add(self, row: Row) -> None:
        """Keep a row at once, with the machine that it comes from, and print it."""
        append_line(self.path, {**row, "cpu": machine()})
        print(row, flush=True)


def in_process(script: str, words: Sequence[str], root: Path) -> Row:
    """Return the row that a script prints as its last line, in a process of its own."""
    environment = {**os.environ, "COMPRESS_DATA_ROOT": str(root.resolve())}
    done = subprocess.run(
        [sys.executable, script, "--out", ".", "--root", str(root), "--one", *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{', '.join(words)}: {done.stderr}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def machine() -> str:
    """Return the processor and what of it matters to speed."""
    cpu, features = cpu_info()
    return f"{cpu} ({', '.join(features)})"


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    body = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *body)]


def table_of(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """Return the lines of a table of rows; what a row lacks is empty."""
    return table(columns, ([row.get(column, "") for column in columns] for row in rows))


def write_report(
    path: Path, title: str, lines: Iterable[str], rows: Iterable[Row], command: str
) -> None:
    """Write a table and what belongs to it: the machines that its rows are of, the command."""
    machines = collections.Counter(row["cpu"] for row in rows)
    where = [f"{count} rows on {one}." for one, count in machines.items()]
    body = [f"# {title}", "", *lines, "", *where, "", f"`{command}` gives it.", ""]
    write_atomic(path, "\n".join(body))
