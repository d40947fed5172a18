"""What a row's own counts say: shares and notes, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from compress.results.draft import Draft
from compress.results.record import Record


def row(status: str = "ok", **measured: Any) -> dict[str, Any]:
    return Draft.of(Record("a()", 0, status, measured)).row()


def test_a_sparse_file_says_how_many_are_zero_and_what_it_takes() -> None:
    found = row(sparse_tensors=2, params=1000, nonzero_params=203, gzip_bytes=12_345)
    assert found["note"] == "80% of the parameters are zero; gzipped, the file has 12.3 kB"
    # Zeros that no step has made are nothing to speak of.
    assert row(params=1000, nonzero_params=990, gzip_bytes=12_345)["note"] == ""


def test_int8_share_is_of_the_macs_that_were_executed() -> None:
    assert row(int8_macs=3, executed_macs=4)["int8_macs_share"] == 0.75
    nothing = row(int8_macs=0, executed_macs=0)
    assert "int8_macs_share" not in nothing
    assert "neither convolutions nor matrix products" in nothing["missing"]["int8_macs_share"]


@pytest.mark.parametrize(
    ("agreement", "status", "said"),
    [(0.46, "ok", True), (0.9, "ok", False), (0.46, "unverified", False)],
)
def test_a_file_that_is_unlike_its_module_says_so(
    agreement: float, status: str, said: bool
) -> None:
    note = row(status, top1_agreement=agreement)["note"]
    words = "the file gives the answer of its float module for only 46% of the items"
    assert note == (words if said else "")


@pytest.mark.parametrize(("flags", "said"), [(["avx2"], True), (["avx_vnni"], False), ([], False)])
def test_what_slows_an_int8_file_follows_from_its_counts_and_the_cpu(
    flags: list[str], said: bool
) -> None:
    counts = {"int8_convs": 20, "float_convs": 0, "int8_matmuls": 1, "float_matmuls": 0}
    measured = {**counts, "qdq_nodes": 2, "int8_macs": 100, "executed_macs": 100}
    log = ({"kind": "executed", "macs": 100, "cpu_flags": flags},)
    note = Draft.of(Record("a()", 0, "ok", measured, log=log)).row()["note"]
    assert note == (
        "what slows int8: this CPU has no int8 dot products (VNNI, AMX or Arm's)" if said else ""
    )
