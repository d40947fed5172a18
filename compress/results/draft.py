"""A row on its way: a record, and what was derived of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.results.record import Key, Record

TOLD = {
    "metric": "",
    "peak_bytes": "no peak memory: ",
    "int8_convs": "",
    "ece": "no calibration error: ",
}
"""Columns whose reason for being empty stands in the row's note, and how it begins."""


@dataclass
class Draft:
    """Figures, reasons and notes of one record."""

    record: Record
    figures: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def of(record: Record) -> Draft:
        return Draft(record, dict(record.measured), dict(record.missing), list(record.notes))

    @property
    def ok(self) -> bool:
        return self.record.status == "ok"

    def row(self) -> dict[str, Any]:
        """Return the flat row of a table (see `compress.results.columns`)."""
        record = self.record
        told = [f"{words}{self.missing[key]}" for key, words in TOLD.items() if key in self.missing]
        return {
            "chain": record.chain,
            "seed": record.seed,
            "status": record.status,
            "role": record.role,
            "control": record.control,
            "error": record.error,
            "note": "; ".join([*self.notes, *told]),
            "cuda_note": "",
            **({"onnx_path": record.files["onnx"]} if "onnx" in record.files else {}),
            **self.figures,
            "steps": list(map(asdict, record.steps)),
            "missing": self.missing,
        }


Drafts = Mapping[Key, Draft]
