"""The files of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    shown = list(rows)
    write_atomic(out / "results.csv", to_csv(shown, about))
    write_atomic(out / "table.md", markdown(shown, about))
    write_atomic(out / "pareto.png", pareto_png(shown, about))
    _write_or_remove(out / "speedups.png", speedups_png(shown, about))
    _write_or_remove(out / "curves.csv", curves_csv(epochs))
    _write_or_remove(out / "curves.png", curves_png(epochs, shown, about))
    _write_or_remove(
        out / "seeds.csv", seeds_csv(shown, about) if len(seeds_of(shown)) > 1 else None
    )


def _write_or_remove(path: Path, content: str | bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, content)
