"""What a row's own figures say that a reader should know."""

from __future__ import annotations

from compress.results.draft import Draft

ALIKE = 0.9
"""Below this agreement with its float module (top-1), a lowered file's row says so."""


def add_notes(draft: Draft) -> None:
    """Add the shares and notes that follow from what was counted of one file."""
    found = draft.figures
    if found.get("executed_macs"):
        found["int8_macs_share"] = found["int8_macs"] / found["executed_macs"]
    elif "executed_macs" in found:
        draft.missing["int8_macs_share"] = "the file has neither convolutions nor matrix products"
    if found.get("sparse_tensors"):
        zeros = 1 - found["nonzero_params"] / found["params"]
        draft.notes.append(
            f"{zeros:.0%} of the parameters are zero; gzipped, the file has "
            f"{size_words(found['gzip_bytes'])}"
        )
    if draft.ok and (same := found.get("top1_agreement", 1.0)) < ALIKE:
        draft.notes.append(
            f"the file gives the answer of its float module for only {same:.0%} of the items"
        )
    if (why := draft.missing.get("control_verdict")) and not draft.record.control:
        draft.notes.append(f"no control of equal cost: {why}")


def size_words(count: float) -> str:
    """Return a number of bytes with three significant digits and its unit."""
    unit, scale = next(
        ((unit, scale) for unit, scale in (("kB", 1e3), ("MB", 1e6)) if count < 999.5 * scale),
        ("GB", 1e9),
    )
    return f"{float(f'{count / scale:.3g}'):g} {unit}"
