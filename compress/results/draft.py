"""A row being derived: a record, and the figures, reasons and notes that follow from it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.results.record import COUNTS, EXECUTION, Key, Record
from compress.system.amounts import macs_leave_out, size
from compress.timing.executed import Executed, explain

REASON_PREFIXES = {
    "metric": "",
    "peak_bytes": "no peak memory: ",
    "int8_convs": "",
    "ece": "no calibration error: ",
}
"""Columns whose reason for being empty is part of the row's note, and how it begins there."""
COUNTED = (
    *("int8_convs", "float_convs", "int8_matmuls", "float_matmuls", "qdq_nodes", "int8_macs"),
    "executed_macs",
)
"""The figures of `compress.timing.executed.Executed`, in its order."""
ALIKE = 0.9
"""Below this agreement with its float module (top-1), a lowered file's row says so."""


@dataclass
class Draft:
    """Figures, reasons and notes of one record."""

    record: Record
    figures: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def of(record: Record) -> Draft:
        """Start a row, with the shares and notes that follow from the record's own counts."""
        draft = Draft(record, dict(record.measured), dict(record.missing), list(record.notes))
        figures, notes = draft.figures, draft.notes
        if figures.get("executed_macs"):
            figures["int8_macs_share"] = figures["int8_macs"] / figures["executed_macs"]
        elif "executed_macs" in figures:
            reason = "the file has neither convolutions nor matrix products"
            draft.missing["int8_macs_share"] = reason
        if figures.get("sparse_tensors"):
            zeros = 1 - figures["nonzero_params"] / figures["params"]
            gzipped = size(figures["gzip_bytes"])
            notes.append(f"{zeros:.0%} of the parameters are zero; gzipped, the file has {gzipped}")
        notes += _uncounted(record)
        if slowed := _slowed(record):
            notes.append(slowed)
        if draft.ok and (same := figures.get("top1_agreement", 1.0)) < ALIKE:
            notes.append(
                f"the file gives the answer of its float module for only {same:.0%} of the items"
            )
        if (reason := draft.missing.get("control_verdict", "")) and not record.control:
            notes.append(f"no control of equal cost: {reason}")
        return draft

    @property
    def ok(self) -> bool:
        return self.record.status == "ok"

    def row(self) -> dict[str, Any]:
        """Return the flat row of a table (see `compress.results.columns`)."""
        record = self.record
        reasons = [
            f"{prefix}{self.missing[column]}"
            for column, prefix in REASON_PREFIXES.items()
            if column in self.missing
        ]
        names = ("chain", "seed", "status", "role", "control", "error")
        return {
            **{name: getattr(record, name) for name in names},
            "note": "; ".join([*self.notes, *reasons]),
            "cuda_note": "",
            **({"onnx_path": record.files["onnx"]} if "onnx" in record.files else {}),
            **self.figures,
            "steps": list(map(asdict, record.steps)),
            "missing": self.missing,
        }


def _slowed(record: Record) -> str:
    """Return what keeps an int8 file from its speed, on the CPU on which it was executed."""
    flags = [line.get("cpu_flags") for line in record.log if line["kind"] == EXECUTION]
    if not flags or not flags[-1]:
        return ""
    counts: list[Any] = [record.measured[name] for name in COUNTED]
    return explain(Executed(*counts), flags[-1])


def _uncounted(record: Record) -> list[str]:
    """Return what a model's counts leave out."""
    found = []
    for line in record.log:
        if line["kind"] != COUNTS:
            continue
        if left_out := line.get("left_out"):
            found.append(macs_leave_out(left_out))
        if unused := line.get("unused_params"):
            found.append(
                f"{unused:,} parameters that the deployed file does without, such as those of "
                f"heads that are only used in training, are not counted"
            )
    return found


Drafts = Mapping[Key, Draft]
