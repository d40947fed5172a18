"""The files of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.report.curves import curves_csv, curves_png
from compress.report.forest import speedups_png
from compress.report.pareto import pareto_png
from compress.report.table import markdown
from compress.results.seeds import seeds_csv, seeds_of
from compress.results.table import Row, to_csv
from compress.system.files import write_atomic


def write_reports(
    rows: Iterable[Row], about: Mapping[str, Any], out: Path, epochs: Sequence[Row] = ()
) -> None:
    """Write results.csv, table.md and pareto.png into the folder `out`, each all or nothing.

    Where a row has an interval, speedups.png is written too, where there are several seeds,
    seeds.csv, and where something was trained, curves.csv and curves.png of its `epochs` (see
    `compress.report.curves`). An older one that no longer holds is removed.
    """
    for name, content in _files(list(rows), about, epochs):
        if content is None:
            (out / name).unlink(missing_ok=True)
        else:
            write_atomic(out / name, content)


def _files(
    rows: Sequence[Row], about: Mapping[str, Any], epochs: Sequence[Row]
) -> Iterator[tuple[str, str | bytes | None]]:
    """Yield every file's name and content, one by one: a picture that fails costs no table."""
    yield "results.csv", to_csv(rows, about)
    yield "table.md", markdown(rows, about)
    yield "pareto.png", pareto_png(rows, about)
    yield "speedups.png", speedups_png(rows, about)
    yield "curves.csv", curves_csv(epochs)
    yield "curves.png", curves_png(epochs, rows, about)
    yield "seeds.csv", seeds_csv(rows, about) if len(seeds_of(rows)) > 1 else None
