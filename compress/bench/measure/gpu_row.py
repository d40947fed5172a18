"""The GPU's columns, and what is found for one row on the way to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.results.record import Record
from compress.stats.spread import NOISY
from compress.timing.cuda.files import CUDA, TENSORRT
from compress.timing.cuda.modules import Form
from compress.timing.summary import Timing

TORCH, FILE, PEAK = "cuda_torch_ms_p50", "cuda_ms_p50", "cuda_peak_bytes"
GRAPH = "cuda_graph_ms_p50"
FORMS = {
    TORCH: Form(),
    "cuda_torch_float16_ms_p50": Form("float16"),
    "cuda_torch_bfloat16_ms_p50": Form("bfloat16"),
    "cuda_batch32_per_s": Form(batch=32),
    # The last, because a graph that cannot be captured can leave torch's allocator in disorder.
    GRAPH: Form(graph=True),
}
"""Column -> how the module is run for it."""
PROVIDERS = {FILE: CUDA, "cuda_trt_ms_p50": TENSORRT}
"""Column -> how the file is run for it."""
SPEEDUPS = {TORCH: "cuda", FILE: "cuda_file"}
"""Columns whose timing is held against the baseline's, and how the columns of that begin."""
WORDS = {
    TORCH: "float32",
    "cuda_torch_float16_ms_p50": "float16",
    "cuda_torch_bfloat16_ms_p50": "bfloat16",
    GRAPH: "CUDA graph",
    "cuda_batch32_per_s": "batch 32",
    FILE: "CUDA provider",
    "cuda_trt_ms_p50": "TensorRT provider",
    PEAK: "peak memory",
    "cuda_speedup": "speed-up",
    "cuda_file_speedup": "speed-up of the file",
}
"""Every column that has a figure or a reason, in a reader's words."""
LOWERED = "the file is int8 or float16, and torch has only the float32 module"
NO_MODULE = "the row's module is not at hand"
NO_RATIO = "the baseline could not be timed on the GPU"
UNJUDGED = "the baseline and its copy differed too much for any verdict"


@dataclass
class Found:
    """Figures and reasons by column; what is worth saying besides."""

    figures: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    """Sentences, in their order, each once."""
    noisy: bool = False

    def keep(self, column: str, timing: Timing) -> None:
        """Take the column's figure from a timing, or the reason that there is none.

        With it, where the column is one of `SPEEDUPS`, the speed-up, its interval and verdict.
        """
        if timing.error:
            self.reasons[column] = timing.error
        else:
            per_second = column.endswith("per_s")
            self.figures[column] = timing.per_second if per_second else timing.p50_ms
            self.noisy |= timing.noisy
        if column in SPEEDUPS:
            self._keep_speedup(SPEEDUPS[column], timing)

    def _keep_speedup(self, head: str, timing: Timing) -> None:
        found = {
            f"{head}_speedup": timing.speedup,
            f"{head}_speedup_low": timing.low,
            f"{head}_speedup_high": timing.high,
            f"{head}_verdict": timing.verdict or None,
        }
        self.figures |= {key: value for key, value in found.items() if value is not None}
        if timing.speedup is None:
            self.reasons[f"{head}_speedup"] = timing.error or NO_RATIO
        elif timing.low is not None and not timing.verdict:
            self.reasons[f"{head}_verdict"] = UNJUDGED

    def onto(self, record: Record, everywhere: Mapping[str, str], lowered: bool) -> Record:
        """Return the record with a figure or a reason in every column.

        `everywhere` are the reasons that hold for all rows: column -> reason.
        """
        reasons = {**self.reasons, **everywhere}
        for column, head in SPEEDUPS.items():
            if column in reasons and f"{head}_speedup" not in self.figures:
                reasons.setdefault(f"{head}_speedup", reasons[column])
        for column in WORDS:
            if column not in self.figures:
                usual = LOWERED if lowered else NO_MODULE
                reasons.setdefault(column, reasons.get(TORCH, usual))
        note = "; ".join([*self.notes, *_told(reasons, set(everywhere.values()))])
        notes = list(record.notes)
        if self.noisy:
            notes.append(
                f"noisy latency on the GPU: half of the calls lie further apart than {NOISY:.0%} "
                f"of the median"
            )
        return replace(
            record,
            measured={**record.measured, **self.figures, "cuda_note": note},
            missing={**record.missing, **reasons},
            notes=tuple(notes),
        )


def _told(reasons: Mapping[str, str], general: set[str]) -> list[str]:
    """Return a sentence for every reason; those that hold everywhere need no columns."""
    columns: dict[str, list[str]] = {}
    for column, words in WORDS.items():
        if column in reasons:
            columns.setdefault(reasons[column], []).append(words)
    return [
        reason if reason in general else f"no {', '.join(words)}: {reason}"
        for reason, words in columns.items()
    ]
