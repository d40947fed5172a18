"""The files of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.files import write_atomic
from compress.report.columns import Row, to_csv
from compress.report.pareto import pareto_png
from compress.report.table import markdown


def write_reports(rows: Iterable[Row], about: Mapping[str, Any], out: Path) -> None:
    """Write results.csv, table.md and pareto.png into the folder `out`, each all or nothing."""
    shown = list(rows)
    write_atomic(out / "results.csv", to_csv(shown))
    write_atomic(out / "table.md", markdown(shown, about))
    write_atomic(out / "pareto.png", pareto_png(shown, about))
