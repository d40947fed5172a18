from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_rows import row, row_steps, timed

from compress.report.about import title
from compress.report.layout import width
from compress.report.picture import Picture
from compress.report.remarks import remarks, shared
from compress.report.table import markdown, text
from compress.results.timed import FORMS, described, timed_files, timed_on_gpu

CHAIN = "prune_channels(macs=0.5) -> distill(epochs=3) -> quantize()"
ROWS = [
    {
        "chain": CHAIN,
        "steps": row_steps(CHAIN),
        "seed": 0,
        "status": "ok",
        "accuracy": 0.9722,
        "accuracy_delta": -0.0084,
        "accuracy_delta_low": -0.0204,
        "accuracy_delta_high": 0.0036,
        "accuracy_verdict": "not shown",
        "accuracy_low": 0.95,
        "accuracy_high": 0.985,
        "params": 9_200,
        "macs": 230_000,
        "onnx_bytes": 14_100,
        "cpu_ms_p50": 0.0312,
        "note": "kept 51 %",
        "cpu_speedup": 3.95,
        "cpu_speedup_low": 3.9,
        "cpu_speedup_high": 4.02,
        "cpu_verdict": "faster",
    },
    {
        "chain": "baseline",
        "seed": 0,
        "status": "ok",
        "accuracy": 0.9806,
        "accuracy_delta": 0.0,
        "accuracy_low": 0.965,
        "accuracy_high": 0.993,
        "params": 76_700,
        "macs": 11_200_000,
        "onnx_bytes": 309_000,
        "cpu_ms_p50": 0.1234,
        "cuda_note": "no CUDA device",
    },
    {
        "chain": "factorize(rank=0.5)",
        "seed": 0,
        "status": "failed",
        "error": "<b>|\nx",
        "note": None,
    },
    {
        "chain": "quantize()",
        "seed": 0,
        "status": "unverified",
        "accuracy": 0.9,
        "note": "kept 51 %",
    },
]
ABOUT = {
    "suite": "digits",
    "data": "digits",
    "model": "cnn",
    "baseline": "train(epochs=9)",
    "command": "compress-models run digits",
    "test_items": 360,
    "notes": ["One note."],
    "timings": described([timed_files("cpu")]),
    "environment": {
        "cpu": "EPYC",
        "threads": 4,
        "flags": ["avx2"],
        "date": "2026-10-02",
        "versions": {"torch": "2.11.0"},
    },
}
MARKDOWN = """\
# digits

|  #| chain                     |      acc %|         Δ pt| params|  MACs|   kB|    ms|    speed-up|
| -:| ------------------------- | ---------:| -----------:| -----:| ----:| ---:| ----:| ----------:|
|   | baseline                  |      98.06|            -|  76.7k| 11.2M|  309| 0.123|           -|
|  1| `prune_channels(`         |      97.22| -0.84 ±1.2 ≈|  9.20k|  230k| 14.1| 0.031| 3.95 ±.06 ▲|
|   |   `macs=0.5)`             |           |             |       |      |     |      |            |
|   | `-> distill(epochs=3)`    |           |             |       |      |     |      |            |
|   | `-> quantize()` [1]       |           |             |       |      |     |      |            |
|  2| `factorize(rank=0.5)` [2] |     failed|            -|      -|     -|    -|     -|           -|
|  3| `quantize()` [3] [1]      | unverified|            -|      -|     -|    -|     -|           -|

Against the baseline: ▲ better or faster, ≈ inconclusive.

- [1] kept 51 %
- [2] failed: &lt;b&gt;\\| x
- [3] unverified: its ONNX file was not shown to compute what the model does; not for use

## Is the difference in accuracy real?

acc %: Wilson's 95 % interval. Δ: the difference to the baseline on the same items, with its paired
95 % interval.

|  #| chain                             |          acc %|                   Δ pt|
| -:| --------------------------------- | -------------:| ---------------------:|
|   | baseline                          | [96.50, 99.30]|                      -|
|  1| `prune_channels→distill→quantize` | [95.00, 98.50]| -0.84 [-2.04, +0.36] ≈|

## How much faster, and is it real?

Times as fast as the baseline, timed in turns with it: the median of ratios within rounds, with a
bootstrap's 95 % interval over processes and rounds, and the verdict.

|  #| chain                             |  batch 1, 4 threads|
| -:| --------------------------------- | ------------------:|
|  1| `prune_channels→distill→quantize` | 3.95 [3.90, 4.02] ▲|

## How long does a call take?

Median / 90th percentile of a call's milliseconds; a call takes a whole batch. Speed-ups, which are
timed in turns, are more reliable.

|  #| chain                             | batch 1, 4 threads|
| -:| --------------------------------- | -----------------:|
|   | baseline                          |              0.123|
|  1| `prune_channels→distill→quantize` |             0.0312|

## What this rests on

- Data: digits, 360 test items. Model: cnn. Baseline: train(epochs=9).
- 3 rows besides the baseline, 1 of them failed, 1 of them unverified.
- Machine: EPYC; 4 threads; avx2; torch 2.11.0; 2026-10-02.
- Δ pt: points against the baseline of the same seed, ± half of the paired 95 % interval; speed-up:
  times as fast as the baseline, ± half of a bootstrap's 95 % interval, or the interval itself
  where it is wide; kB: the ONNX file in 1000 bytes; ms: median of a call's milliseconds (batch 1,
  4 threads). Accuracy, kB and ms are those of the ONNX file, parameters and MACs those of the
  model.
- GPU latency was not measured: no CUDA device.
- One note.

This command reproduces the table:

    compress-models run digits
"""
PLAIN = """\
digits

 #  chain                          acc %          Δ pt  params   MACs    kB     ms     speed-up
--  ------------------------  ----------  ------------  ------  -----  ----  -----  -----------
    baseline                       98.06             -   76.7k  11.2M   309  0.123            -
 1  prune_channels(macs=0.5)       97.22  -0.84 ±1.2 ≈   9.20k   230k  14.1  0.031  3.95 ±.06 ▲
    -> distill(epochs=3)
    -> quantize()
 2  factorize(rank=0.5)           failed             -       -      -     -      -            -
 3  quantize()                unverified             -       -      -     -      -            -

Against the baseline: ▲ better or faster, ≈ inconclusive. ±: half of a 95 % interval. ms: median of
a call (batch 1, 4 threads).

[rows 1, 3] kept 51 %
[row 2] failed: <b>| x
[row 3] unverified: its ONNX file was not shown to compute what the model does; not for use

In table.md: whether each difference is real, all latencies, what runs, and what it all rests on
(data, classes, machine, A/A control, command).
"""


def test_markdown():
    assert markdown(ROWS, ABOUT) == MARKDOWN


def test_plain_text():
    assert text(ROWS, ABOUT) == PLAIN


@pytest.mark.parametrize(
    ("suite", "model", "data", "name"),
    [
        ("digits", "cnn", "mnist", "digits"),
        ("run", "timm:tf_efficientnet_lite0", "photos", "tf_efficientnet_lite0 on photos"),
        ("run", "mine.py:make", "photos", "mine.py:make on photos"),
        ("run", f"torchvision:{'x' * 60}", "photos", f"{'x' * 39}… on photos"),
        ("run", "cnn", "", "run"),
        ("", "cnn", "mnist", ""),
    ],
)
def test_a_run_without_a_name_is_called_by_its_model_and_data(suite, model, data, name):
    about = {"suite": suite, "model": model, "data": data}
    assert title(about) == name
    assert text(ROWS, about).startswith(f"{name}\n\n" if name else " # ")


def test_pictures_have_the_name_of_the_table(monkeypatch):
    written = []
    monkeypatch.setattr(Picture, "text", lambda self, x, y, text, **style: written.append(text))
    picture = Picture(100)
    picture.heading(0, {"suite": "digits", "model": "timm:a", "data": "photos"}, "what")
    picture.heading(0, {"suite": "run", "model": "timm:a", "data": "photos"}, "what")
    assert written == ["digits · timm:a · what", "", "a on photos · what", ""]


def test_a_wide_interval_of_a_speedup_stands_where_there_is_room_for_the_chain():
    wide = {"cpu_speedup_low": 1.2, "cpu_speedup_high": 8.7}
    found = row("a()", speedup=3.23, **wide)
    for shown in (markdown([row("baseline"), found], ABOUT), text([found], ABOUT)):
        assert "3.23 (1.2 to 8.7) ▲" in shown
    words = " ".join(markdown([found], ABOUT).split())
    assert "or the interval itself where it is wide" in words
    huge = {"onnx_bytes": 99_999_999_499, "params": 10**14 - 1, "cpu_ms_p50": 6.1e-135}
    for shown in (markdown([found | huge | WIDE_DELTA], ABOUT), text([found | huge], ABOUT)):
        assert all(width(line) <= 100 for line in shown.splitlines())
    assert "3.23 ▲|" in markdown([found | huge | WIDE_DELTA], ABOUT)
    assert "3.23 [1.20, 8.70] ▲" in markdown([found | huge | WIDE_DELTA], ABOUT)


WIDE_DELTA = {"accuracy_delta": -1.0, "accuracy_delta_low": -1.0, "accuracy_delta_high": 1.0}
WIDE_DELTA |= {"status": "ok", "accuracy_verdict": "worse"}


def test_several_seeds_make_one_row():
    rows = [row("baseline", seed=seed, accuracy=0.9 + 0.01 * seed) for seed in (0, 1)] + [
        row("a()", -0.02, 2.0, seed=seed, role="control") for seed in (0, 1)
    ]
    shown = markdown(rows, {})
    assert "acc % ±sd" in shown
    assert "|   | baseline        | 90.50 ±.71|" in shown
    assert "|  1| `a()` [control] |   88.00 ±0| -2.00 ±1.0 ▼|" in shown
    assert "each is the mean of 2 seeds (0, 1), which results.csv lists one by one" in " ".join(
        shown.split()
    )
    assert "[control]: added for comparison" in text(rows, {})
    assert "Means over 2 seeds; acc %: ± standard deviation; else ±: half" in text(rows, {})
    assert "±sd" not in markdown(rows[:1], {})


def test_reasons_for_no_gpu_are_said_once_and_measured_ones_pointed_at():
    rows = [{"chain": f"a{i}()", "cuda_note": "no CUDA device."} for i in range(3)]
    assert markdown(rows, {}).count("no CUDA device.") == 1
    rows[0]["cuda_ms_p50"] = 1.0
    assert "GPU: no CUDA device." in markdown(rows, {})


def test_reasons_for_missing_gpu_figures_say_whose_they_are():
    rows = [{"chain": "baseline", "cuda_ms_p50": 1.0, "cuda_note": "no TensorRT; channels last."}]
    rows += [{"chain": f"a{i}()", "cuda_note": "no TensorRT"} for i in range(1, 8)]
    for i in (1, 2, 3, 6):
        rows[i]["cuda_note"] = "no float16: out of memory; no TensorRT"
    rows[7]["cuda_note"] += "; channels last"
    rows.append({"chain": "a8()", "status": "failed"})
    shown = " ".join(markdown(rows, {}).split())
    assert (
        "GPU: no TensorRT; channels last (baseline, row 7); no float16: out of memory (rows 1-3, "
        "6)."
    ) in shown


def test_no_gpu_latency_and_no_note_say_nothing():
    assert "GPU" not in markdown([{"chain": "a()"}], {})


FEW = "{} images are too few to be sure of max_drop=0.5: a loss of {} can't be ruled out"


def test_a_terminal_has_every_remark_once_with_its_rows():
    noisy = "noisy latency ({}): half of the calls lie far apart"
    rows = [
        row("baseline", note=noisy.format("batch 1")),
        row("a()", note=f"{FEW.format(53, 9.4)}; {noisy.format('batch 1')}"),
        row("b()", note=f"kept 2 layers (of 3); {FEW.format(53, 6.5)}"),
        row("c()", note=noisy.format("batch 1"), status="failed", error="it broke (twice; so)"),
        row("d()", note=f"{noisy.format('batch 32')}; {FEW.format(53, 9.4)}"),
    ]
    shown = text(rows, ABOUT)
    assert re.findall(r"^\[.*(?:\n    .*)*", shown, re.MULTILINE) == [
        "[baseline, rows 1, 3] noisy latency (batch 1): half of the calls lie far apart",
        "[rows 1, 4] 53 images are too few to be sure of max_drop=0.5: a loss of 9.4 can't be "
        "ruled out",
        "[row 2] kept 2 layers (of 3); 53 images are too few to be sure of max_drop=0.5: a loss of "
        "6.5 can't\n    be ruled out",
        "[row 3] failed: it broke (twice; so)",
        "[row 4] noisy latency (batch 32): half of the calls lie far apart",
    ]
    assert "[1]" not in shown, "the rows are named"
    words = " ".join(markdown(rows, ABOUT).split())
    assert FEW.format(53, 6.5) in words, "table.md has all of it"


def test_remarks_that_differ_in_a_name_or_a_figure_are_each_rows_own():
    said = ["smaller learning_rate than 1e-05", "smaller learning_rate than 2e-06"]
    said += ["/data/run-1/x.pt", "/data/run-2/x.pt", "layers (a; b)", "layers (c)"]
    rows = [row(f"{name}()") for name in "abcdef"]
    labels = {f"{name}()": str(number) for number, name in enumerate("abcdef", 1)}
    found = shared(rows, [[one] for one in said], labels)
    assert found == [f"[row {number}] {one}" for number, one in enumerate(said, 1)]


@pytest.mark.parametrize(
    ("note", "parts"),
    [
        ("", []),
        ("a; b", ["a", "b"]),
        ("a (b; c); d", ["a (b; c)", "d"]),
        ("a) b; c (d; e", ["a) b", "c (d; e"]),
        ("a (b (c; d); e); f;g", ["a (b (c; d); e)", "f;g"]),
    ],
)
def test_remarks_end_at_semicolons_outside_parentheses(note, parts):
    assert remarks(note) == parts


@given(st.lists(st.lists(st.text("ab(); 0.1-", max_size=40), max_size=3), max_size=4))
def test_any_notes_can_be_shared(notes):
    rows = [row(f"{i}()") for i in range(len(notes))]
    found = shared(rows, notes, {f"{i}()": str(i + 1) for i in range(len(notes))})
    assert len(found) <= sum(len(remarks(note)) for own in notes for note in own)


def test_a_terminal_is_spared_what_the_file_holds():
    names = [f"n{i:08}" for i in range(100)]
    about = ABOUT | {"class_counts": [5] * 100, "task": {"classes": names}}
    about |= {"notes": ["the fingerprint covers samples of their bytes"], "multiplicity": "Holm"}
    file, shown = markdown(ROWS, about), text(ROWS, about)
    for words in (names[7], "fingerprint", "Holm", "Machine:", "compress-models run", "[1]"):
        assert words in file
        assert words not in shown
    assert len(shown[shown.index("Against") :].splitlines()) < 15
    assert "In table.md: " in shown


def test_a_terminal_warns_of_what_it_shows():
    doubt = {"trusted": False, "untrusted_because": ["it is made up"]}
    other = timed_files("cpu1", known=doubt | {"bar": 0.2})
    about = timed(other, **doubt, bar=0.1, denominator="optimization level 'basic'")
    rows = [row("baseline"), row("a()", speedup=2.0, cpu1_speedup=2.0)]
    shown = " ".join(text(rows, about).split())
    assert "DO NOT TRUST differences in latency below 10.0 % at batch 1, 2 threads" in shown
    assert "NOT THE DEFAULT DENOMINATOR at batch 1, 2 threads" in shown
    assert "below 20.0 %" not in shown
    assert "below 20.0 %" in " ".join(markdown(rows, about).split())


def test_a_run_that_was_stopped_shows_how_to_go_on():
    about = ABOUT | {"order": [["baseline", 0], ["b()", 0]]}
    shown = text(ROWS[1:2], about)
    assert "NOT FINISHED: 1 of 2 rows is missing" in shown
    assert "The command below continues" in " ".join(shown.split())
    assert shown.endswith("This command reproduces the table:\n\ncompress-models run digits\n")


HOSTILE = "<script>alert(1)</script> `x` | y\n\n# z <img src=x> [l](javascript:1) \\| \x1b[2J"


def _tables_are_whole(shown):
    """Whether every line of every table has as many cells as its header, and a rule follows it."""
    found = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    for table in found:
        lines = table.splitlines()
        counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
        if len(counts) != 1 or not re.fullmatch(r"\|( -+:? ?\|)+", lines[1]):
            return False
    return bool(found)


def test_no_html_nor_control_character_passes():
    found = row(HOSTILE, error=HOSTILE, note=HOSTILE + "2", cuda_note=HOSTILE, metric=0.5)
    found["on_<b>_cpu_ms_p50"] = 1.0
    about = {"suite": HOSTILE, "data": HOSTILE, "model": HOSTILE, "notes": [HOSTILE]}
    about |= {"metric": HOSTILE, "environment": {"cpu": HOSTILE, "gpu": HOSTILE}}
    about |= {"other_machines": {"<b>": {"environment": {"cpu": HOSTILE}}}}
    about |= {"timings": described([timed_files("cpu", "<b>", known={"control": 1.0})])}
    shown = markdown([found], about)
    assert "<" not in shown
    assert "\x1b" not in shown + text([found], about)
    assert "](" not in shown.replace("\\](", "")
    assert _tables_are_whole(shown)


texts = st.one_of(st.text(max_size=200), st.text("ab(,) ->'`|<\\", min_size=60, max_size=300))
sizes = st.one_of(st.none(), st.floats(0, 1e15))
shares = st.floats(0, 1)
points = st.floats(-1, 1)
counts = st.integers(0, 10**14)
verdicts = st.sampled_from(["better", "slower", "mixed", "", None])
SETTINGS = ("cpu", "cpu1", "cpu_batch32", "cpu64_batch100000", "on_x_cpu", "on_x_cpu1", "cuda")
FIGURES = {
    "ms_p50": sizes,
    "ms_p90": sizes,
    "ms_iqr": sizes,
    "speedup": sizes,
    "speedup_low": st.just(0.0),
    "speedup_high": st.one_of(sizes, st.just(float("inf"))),
    "verdict": verdicts,
}
OPTIONAL = {
    **dict.fromkeys(("error", "note", "cuda_note", "control"), texts),
    **dict.fromkeys(("accuracy", "accuracy_high", "agreement", "top5", "ece"), shares),
    **{f"{key}_delta{end}": points for key in ("accuracy", "control") for end in ("", "_high")},
    **{f"{key}_delta_low": st.just(-1.0) for key in ("accuracy", "control")},
    **{f"{key}_p": shares for key in ("accuracy", "control")},
    **{f"{key}_verdict": verdicts for key in ("accuracy", "control")},
    **dict.fromkeys(("lost", "gained", "params", "macs", "onnx_bytes", "gzip_bytes"), counts),
    **dict.fromkeys(("nonzero_params", "peak_bytes", "int8_convs", "float_convs"), counts),
    **dict.fromkeys(("int8_matmuls", "float_matmuls", "qdq_nodes", "cuda_peak_bytes"), counts),
    "accuracy_low": st.just(0.0),
    "metric": st.floats(-1e300, 1e300),
    "int8_macs_share": shares,
    "cuda_torch_ms_p50": sizes,
    "cuda_trt_ms_p50": sizes,
    "cuda_batch32_per_s": sizes,
    "role": st.sampled_from(["", "control"]),
    **{f"{name}_{key}": found for name in SETTINGS for key, found in FIGURES.items()},
}
hostile_rows = st.fixed_dictionaries(
    {
        "chain": st.one_of(texts, st.just("baseline")),
        "seed": st.integers(0, 1),
        "status": st.sampled_from(["ok", "ok", "ok", "failed", "unverified"]),
    },
    optional=OPTIONAL,
)


WIDE = {
    "chain": "0" * 17,
    "seed": 0,
    "status": "ok",
    "cpu_ms_p50": 6.067435181000086e-135,
    "accuracy_low": 0.0,
    "accuracy": 0.0,
    "accuracy_delta": 1.0,
    "cpu_speedup": 0.0,
    "onnx_bytes": 1,
    "accuracy_high": 1.0795043020987005e-186,
    "cpu_speedup_high": 1999999.0,
    "cpu_speedup_low": 0.0,
}

WIDEST = WIDE | {
    "accuracy": 1.0,
    "accuracy_delta_low": -1.0,
    "accuracy_delta_high": 1.0,
    "accuracy_verdict": "better",
    "params": 10**14 - 1,
    "onnx_bytes": 99_999_999_499,
    "cpu_speedup": 9999.4,
    "cpu_speedup_high": 1e9,
    "cpu_verdict": "faster",
}


@settings(max_examples=120, deadline=None)
@example([WIDE], "", True)
@example([WIDEST, WIDEST | {"status": "unverified"}], "", True)
@example([{"chain": "baseline", "metric": 1.0}], "<" * 60, True)
@given(st.lists(hostile_rows, max_size=4), texts, st.booleans())
def test_no_line_is_wider_than_100_columns_and_every_table_is_whole(rows, words, trusted):
    about = {"suite": words, "data": words, "command": words, "notes": [words], "metric": words}
    known = {"trusted": trusted, "denominator": words, "control": 1.0}
    known["untrusted_because"] = [words]
    here = (timed_files(name, known=known) for name in SETTINGS if name.startswith("cpu"))
    there = (timed_files(name, "x", known=known) for name in ("cpu", "cpu1"))
    about["timings"] = described([*here, *map(timed_on_gpu, FORMS), *there])
    about["other_machines"] = {"x": {"environment": {"cpu": words}}}
    about["class_counts"] = [5, 1]
    for shown in (markdown(rows, about), text(rows, about)):
        assert all(width(line) <= 100 for line in shown.splitlines())
    assert _tables_are_whole(markdown(rows, about))
