from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from compress.results import columns as table
from compress.results.columns import COLUMNS, SEEDS, SEEDS_KINDS, columns, group
from compress.results.table import frame, to_csv
from compress.results.timed import described, of_files, timed_files

NAMES = tuple(column.name for column in COLUMNS)

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
    table = frame(ROWS, {})
    assert tuple(table.columns) == NAMES
    assert list(table["chain"]) == ["baseline", "quantize()", "factorize(rank=0.5)"]


def test_missing_integers_do_not_turn_the_others_into_floats():
    table = frame(ROWS, {})
    assert str(table["params"].dtype) == "Int64"
    assert table["params"][1] == 2**60 + 1
    assert table["params"][0] is pd.NA
    assert str(table["macs"].dtype) == "Int64"


def test_csv_round_trip():
    text = to_csv(ROWS, {})
    first, second, third = csv.DictReader(io.StringIO(text))
    assert tuple(first) == NAMES
    assert second["params"] == str(2**60 + 1)
    assert float(second["accuracy"]) == 0.1 + 0.2
    assert first["params"] == first["error"] == third["accuracy"] == third["seed"] == ""
    again = pd.read_csv(io.StringIO(text))
    assert again["accuracy"].dropna().tolist() == [1.0, 0.1 + 0.2]


@pytest.mark.parametrize("start", "=+-@")
def test_a_spreadsheet_finds_no_formula(start):
    (row,) = csv.DictReader(io.StringIO(to_csv([{"chain": "a()", "error": f"{start}1+1"}], {})))
    assert row["error"] == f"'{start}1+1"


def test_csv_can_be_encoded_whatever_a_file_is_called():
    assert "\\udcff" in to_csv([{"chain": "a()", "onnx_path": "\udcff.onnx"}], {}).encode().decode()


def test_the_columns_of_a_setting_stand_together():
    at = NAMES.index("cpu1_ms_p50")
    assert NAMES[at : at + 8] == (
        *("cpu1_ms_p50", "cpu1_ms_p90", "cpu1_ms_iqr", "cpu1_per_s"),
        *("cpu1_speedup", "cpu1_speedup_low", "cpu1_speedup_high", "cpu1_verdict"),
    )
    assert at < NAMES.index("cpu_batch32_per_s") < NAMES.index("int8_convs")
    assert len(set(NAMES)) == len(NAMES)


def test_further_settings_follow_the_trio_and_other_runtimes_and_machines_come_last():
    about = {
        "timings": described(
            [
                *map(timed_files, ("cpu", "cpu2", "cpu16_batch8")),
                timed_files("cpu", runtime="fake"),
                timed_files("cpu", "x_cpu_1"),
                timed_files("cpu_batch32", "x_cpu_1"),
            ]
        )
    }
    rows = [
        {"chain": "a()", "cpu16_batch8_ms_p50": 1.0, "on_x_cpu_1_cpu_batch32_verdict": "faster"},
        {"chain": "b()", "cpu2_ms_p50": 3.0, "on_x_cpu_1_cpu_ms_p50": 2.0},
    ]
    assert [timed.setting for timed in of_files(about)] == ["cpu", "cpu2", "cpu16_batch8"]
    found = [column.name for column in columns(about)]
    at = found.index("cpu_batch32_verdict")
    assert tuple(found[: at + 1]) == NAMES[: at + 1]
    assert found[at + 1 : at + 3] == ["cpu2_ms_p50", "cpu2_ms_p90"]
    assert found[at + 9] == "cpu16_batch8_ms_p50"
    at = found.index("onnx_path")
    assert found[at + 1 : at + 2] == ["fake_cpu_ms_p50"]
    assert found[at + 9] == "on_x_cpu_1_cpu_ms_p50"
    assert found[-1] == "on_x_cpu_1_cpu_batch32_verdict"
    first, second = csv.DictReader(io.StringIO(to_csv(rows, about)))
    assert (first["on_x_cpu_1_cpu_batch32_verdict"], second["cpu2_ms_p50"]) == ("faster", "3.0")


def test_no_rows_give_the_header():
    assert to_csv([], {}) == ",".join(NAMES) + "\n"


def test_the_file_on_the_gpu_has_a_speedup_and_a_verdict():
    at = NAMES.index("cuda_ms_p50")
    assert NAMES[at + 1 : at + 5] == (
        *("cuda_file_speedup", "cuda_file_speedup_low", "cuda_file_speedup_high"),
        "cuda_file_verdict",
    )
    rows = [{"chain": "a()", "cuda_file_speedup": 2.5, "cuda_file_verdict": "faster"}]
    (found,) = csv.DictReader(io.StringIO(to_csv(rows, {})))
    assert (found["cuda_file_speedup"], found["cuda_file_verdict"]) == ("2.5", "faster")


OLD = """chain seed status error role accuracy accuracy_low accuracy_high accuracy_delta
accuracy_delta_low accuracy_delta_high accuracy_p accuracy_verdict agreement lost gained top5 ece
metric control control_delta control_delta_low control_delta_high control_p control_verdict params
nonzero_params macs onnx_bytes gzip_bytes peak_bytes int8_convs float_convs int8_matmuls
float_matmuls qdq_nodes int8_macs_share cuda_ms_p50 cuda_trt_ms_p50 cuda_file_speedup
cuda_file_speedup_low cuda_file_speedup_high cuda_file_verdict cuda_torch_ms_p50
cuda_torch_float16_ms_p50 cuda_torch_bfloat16_ms_p50 cuda_graph_ms_p50 cuda_batch32_per_s
cuda_speedup cuda_speedup_low cuda_speedup_high cuda_verdict cuda_peak_bytes cuda_note
top1_agreement max_abs_error train_samples seconds note onnx_path"""


def test_no_column_of_the_first_version_is_gone():
    figures = [
        "ms_p50",
        "ms_p90",
        "ms_iqr",
        "per_s",
        "speedup",
        "speedup_low",
        "speedup_high",
        "verdict",
    ]
    timed = {f"{name}_{end}" for name in ("cpu", "cpu1", "cpu_batch32") for end in figures}
    assert set(NAMES) >= {*OLD.split(), *timed}


def test_the_table_of_columns_is_whole():
    for column in (*COLUMNS, *SEEDS):
        assert column.words
        assert column.seeds in SEEDS_KINDS
        assert column.dtype in ("text", "int", "float")
        assert bool(column.shown) or not column.header
    assert {column.name for column in group("runs", "takes", "measures", "accuracy")} >= {
        *("qdq_nodes", "peak_bytes", "ece", "agreement")
    }


def test_the_page_of_columns_is_what_the_command_says():
    page = Path(__file__).resolve().parents[2] / "docs" / "columns.md"
    lines = (line for name, words in table.described().items() for line in (name, f"    {words}"))
    assert page.read_text().partition("```\n")[2].removesuffix("```\n").splitlines() == [*lines]
