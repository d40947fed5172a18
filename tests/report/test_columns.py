from __future__ import annotations

import csv
import io
import subprocess
import sys

import pandas as pd
import pytest

from compress.report.columns import (
    COLUMNS,
    columns,
    frame,
    machines,
    settings,
    timing_of,
    to_csv,
)

ROWS = [
    {"chain": "quantize()", "seed": 1, "status": "ok", "params": 2**60 + 1, "accuracy": 0.1 + 0.2},
    {"chain": "baseline", "seed": 0, "status": "ok", "accuracy": 1.0, "extra": "left out"},
    {
        "chain": "factorize(rank=0.5)",
        "status": "failed",
        "error": '-x "quoted",\nline',
        "macs": None,
    },
]


def test_frame_has_the_columns_in_order_and_the_baseline_first():
    table = frame(ROWS)
    assert tuple(table.columns) == COLUMNS
    assert list(table["chain"]) == ["baseline", "quantize()", "factorize(rank=0.5)"]


def test_missing_integers_do_not_turn_the_others_into_floats():
    table = frame(ROWS)
    assert str(table["params"].dtype) == "Int64"
    assert table["params"][1] == 2**60 + 1
    assert table["params"][0] is pd.NA
    assert str(table["macs"].dtype) == "Int64"


def test_csv_round_trip():
    text = to_csv(ROWS)
    first, second, third = csv.DictReader(io.StringIO(text))
    assert tuple(first) == COLUMNS
    assert second["params"] == str(2**60 + 1)
    assert float(second["accuracy"]) == 0.1 + 0.2
    assert first["params"] == first["error"] == third["accuracy"] == third["seed"] == ""
    again = pd.read_csv(io.StringIO(text))
    assert again["accuracy"].dropna().tolist() == [1.0, 0.1 + 0.2]


@pytest.mark.parametrize("start", "=+-@")
def test_a_spreadsheet_finds_no_formula(start):
    (row,) = csv.DictReader(io.StringIO(to_csv([{"chain": "a()", "error": f"{start}1+1"}])))
    assert row["error"] == f"'{start}1+1"


def test_csv_can_be_encoded_whatever_a_file_is_called():
    assert "\\udcff" in to_csv([{"chain": "a()", "onnx_path": "\udcff.onnx"}]).encode().decode()


def test_the_columns_of_a_setting_stand_together():
    at = COLUMNS.index("cpu1_ms_p50")
    assert COLUMNS[at : at + 8] == (
        *("cpu1_ms_p50", "cpu1_ms_p90", "cpu1_ms_iqr", "cpu1_per_s"),
        *("cpu1_speedup", "cpu1_speedup_low", "cpu1_speedup_high", "cpu1_verdict"),
    )
    assert at < COLUMNS.index("cpu_batch32_per_s") < COLUMNS.index("int8_convs")
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_further_settings_follow_the_trio_and_other_machines_come_last():
    rows = [
        {"chain": "a()", "cpu16_batch8_ms_p50": 1.0, "on_x_cpu_1_cpu_batch32_verdict": "faster"},
        {"chain": "b()", "cpu2_ms_p50": 3.0, "on_x_cpu_1_cpu_ms_p50": 2.0},
    ]
    assert settings(rows) == ("cpu2", "cpu16_batch8")
    assert machines(rows) == {"x_cpu_1": ("cpu", "cpu_batch32")}
    found = columns(rows)
    at = found.index("cpu_batch32_verdict")
    assert found[: at + 1] == COLUMNS[: at + 1]
    assert found[at + 1 : at + 3] == ("cpu2_ms_p50", "cpu2_ms_p90")
    assert found[at + 9] == "cpu16_batch8_ms_p50"
    assert found[-3:] == ("onnx_path", "on_x_cpu_1_cpu_ms_p50", "on_x_cpu_1_cpu_batch32_verdict")
    first, second = csv.DictReader(io.StringIO(to_csv(rows)))
    assert (first["on_x_cpu_1_cpu_batch32_verdict"], second["cpu2_ms_p50"]) == ("faster", "3.0")


@pytest.mark.parametrize("name", ["cpu0", "cpu_batch0", "gpu", "cpus", "cpu_batch"])
def test_what_is_no_setting_is_no_column(name):
    rows = [{"chain": "a()", f"{name}_ms_p50": 1.0}]
    assert settings(rows) == ()
    assert columns(rows) == COLUMNS


def test_no_rows_give_the_header():
    assert to_csv([]) == ",".join(COLUMNS) + "\n"


def test_importing_the_room_imports_neither_torch_nor_onnx():
    code = "import sys, compress.report.write; print({'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_file_on_the_gpu_has_a_speedup_and_a_verdict():
    at = COLUMNS.index("cuda_trt_ms_p50")
    assert COLUMNS[at + 1 : at + 5] == (
        *("cuda_file_speedup", "cuda_file_speedup_low", "cuda_file_speedup_high"),
        "cuda_file_verdict",
    )
    rows = [{"chain": "a()", "cuda_file_speedup": 2.5, "cuda_file_verdict": "faster"}]
    (found,) = csv.DictReader(io.StringIO(to_csv(rows)))
    assert (found["cuda_file_speedup"], found["cuda_file_verdict"]) == ("2.5", "faster")


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ("cpu_ms_p50", ("", "cpu")),
        ("cpu8_batch2_speedup_low", ("", "cpu8_batch2")),
        ("on_a_b_cpu1_verdict", ("a_b", "cpu1")),
        ("cuda_ms_p50", None),
        ("accuracy", None),
    ],
)
def test_whose_latency_a_column_is(column, found):
    assert timing_of(column) == found
