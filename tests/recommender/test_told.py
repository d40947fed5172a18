"""What a search says, in words, tables and pictures."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from finished import BASELINE, measured, row
from hypothesis import given
from hypothesis import strategies as st
from made_lab import BASE

from compress.recommender.finals import Final, judged
from compress.recommender.goal import Goal, Judge
from compress.recommender.measured import FAILED, IDLE, NO_TIME, OK, Measured, Notebook, Trial
from compress.recommender.publish import (
    COLUMNS,
    Story,
    _finals_blocks,
    _front_blocks,
    _mattered_blocks,
    front_text,
    frontier,
    steady_ms,
    trials_csv,
    words_so_far,
)
from compress.recommender.question import Found
from compress.recommender.words import live, points, sentence, so_far, trial_line
from compress.report.layout import width
from compress.stats.pairs import Difference

STUDENT = "distill(student='cnn-small(width=16)', loss=dist(), epochs=21)"
CHAINS = [f"{STUDENT} -> prune_channels(macs=0.{n}, scope='global') -> quantize()" for n in "246"]


def test_the_sentence_has_intervals() -> None:
    final = Final("a", row("a"), measured("a", 3.9, 5), 1 / 3.9, True, "equivalent", -0.008)
    final = replace(final, top=0.0004)
    assert sentence(final, BASELINE, Goal(max_drop=1.0)) == (
        "3.9x faster (3.7 to 4.1), 6.8x smaller, −0.4 points (−0.8 to +0.1); "
        "equivalent within 1 point"
    )
    by_size = sentence(final, BASELINE, Goal(by="size", max_drop=0.5))
    assert by_size.startswith("6.8x smaller, 3.9x faster (3.7 to 4.1), −0.4 points")
    assert by_size.endswith("equivalent within 0.5 points")
    macs = sentence(final, BASELINE, Goal(by="macs", max_drop=2.0))
    assert macs.startswith("2.0x fewer MACs, 3.9x faster")
    target = sentence(final, BASELINE, Goal(max_drop=None, target_ms=5.0))
    assert "−0.4 points (−0.9 to +0.1); " in target
    assert target.endswith("2 ms an item, 5 ms was the target")
    better = sentence(replace(final, verdict="better"), BASELINE, Goal(max_drop=1.0))
    assert better.endswith("−0.4 points (−0.9 to +0.1); better than the baseline")
    proven = replace(final, bound=None, top=None)
    assert sentence(proven, BASELINE, Goal(max_drop=1.0)).endswith(
        "points (−0.9 to +0.1); equivalent within 1 point, by earlier finals"
    )


def test_what_is_not_shown_has_the_interval_that_decides_and_the_reason() -> None:
    goal, known = Goal(max_drop=1.0), {name: measured(name, 3.9, 5) for name in "ab"}

    def said(*rows: dict[str, object]) -> str:
        _, found = judged([BASELINE, *rows], goal, known)
        [final] = [one for one in found if one.chain == "a"]
        return sentence(final, BASELINE, goal).partition("smaller, ")[2]

    few = {"lost": 0, "items": 360, "accuracy_delta": 0.0}
    few |= {"accuracy_delta_low": -0.008, "accuracy_delta_high": 0.008}
    assert said(row("a", **few)) == (
        "0.0 points (−1.1 to +1.1); NOT shown to be equivalent within 1 point: 360 test items are "
        "too few to show that of any file"
    )
    assert said(row("a", lost=90)) == (
        "−0.9 points (−1.1 to −0.7); NOT shown to be equivalent within 1 point: it may be "
        "−1.1 points"
    ), "no other finalist is to blame"
    close = next(n for n in range(100, 0, -1) if Difference(n, 0, 10_000).bound > -0.01)
    assert said(row("a", lost=close)).endswith("; equivalent within 1 point")
    assert said(row("a", lost=close), row("b", lost=300)).endswith(
        "NOT shown to be equivalent within 1 point: it may be −1.1 points, corrected for the "
        "number of finalists (as the only one, −1.0)"
    )


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), min_size=1, max_size=4),
    st.sampled_from([0.25, 0.3, 0.5, 1.0, 1.255, 2.0]),
    st.sampled_from([400, 2000, 10_000]),
)
def test_no_sentence_contradicts_itself(
    flips: list[tuple[int, int]], drop: float, items: int
) -> None:
    names = [f"c{n}" for n in range(len(flips))]
    rows = [row(name, *pair, items=items) for name, pair in zip(names, flips, strict=True)]
    rows = [{**one, "accuracy_delta": (one["gained"] - one["lost"]) / items} for one in rows]
    goal = Goal(max_drop=drop)
    _, found = judged([BASELINE, *rows], goal, {name: measured(name, 3.0, 5) for name in names})
    for one in found:
        text = sentence(one, BASELINE, goal).replace("−", "-")
        low, high = map(float, text.partition("points (")[2].partition(")")[0].split(" to "))
        if one.verdict == "equivalent":
            assert low >= -drop
        elif one.verdict != "better":
            assert low <= -drop
            assert f"{low:g}" in text.rpartition("it may be ")[2] or "too few" in text
            blamed = "corrected for the number" in text
            assert not blamed or len(flips) > 1
        assert one.verdict == "better" or low <= 100 * one.row["accuracy_delta"] <= high


def test_slower_and_larger_are_called_so() -> None:
    final = Final(
        "a",
        row(
            "a",
            cpu_speedup=0.5,
            cpu_speedup_low=0.4,
            cpu_speedup_high=0.8,
            cpu_verdict="slower",
            onnx_bytes=13600,
        ),
        measured("a", 0.5, 5),
        2.0,
        False,
    )
    assert sentence(final, BASELINE, Goal()).startswith("2.0x slower (1.25 to 2.5), 2.0x larger")
    same = replace(final, row={**final.row, "onnx_bytes": 6800, "params": 1000})
    assert "x slower (1.25 to 2.5), as large, " in sentence(same, BASELINE, Goal())
    assert sentence(same, BASELINE, Goal(by="params")).startswith("as many parameters, ")


@pytest.mark.parametrize("verdict", ["indistinguishable", ""])
def test_a_speed_that_is_not_shown_is_not_called_faster(verdict: str) -> None:
    times = {"cpu_speedup": 1.004, "cpu_speedup_low": 0.991, "cpu_speedup_high": 1.012}
    told = row("a", cpu_verdict=verdict, **times)
    final = Final("a", told, measured("a", 1.0, 5), 1.0, True, "equivalent", -0.008)
    said = sentence(final, BASELINE, Goal(by="size"))
    assert said.startswith("6.8x smaller, not shown to be faster or slower (0.99x to 1.01x), ")


def test_trials_that_save_nothing_are_not_called_cheaper() -> None:
    judge = Judge(Goal(by="macs"), BASE, 5000)
    assert so_far(measured("a", 1.0, 8), judge) == "2.0x fewer MACs at −0.4 points"
    assert so_far(replace(measured("a", 1.0, 8), macs=1000), judge).startswith("as many MACs at ")
    more = replace(measured("a", 1.0, 8), macs=1250)
    assert so_far(more, judge).startswith("1.25x more MACs at ")


def test_the_best_so_far_in_a_sentence() -> None:
    notebook = Notebook()
    fast, by_macs = Judge(Goal(), BASE, 5000), Judge(Goal(by="macs"), BASE, 5000)
    one = measured("a", 2.0, 8)
    assert words_so_far(one, fast, notebook) == (
        "So far, on validation items: 2.00x faster, −0.4 points"
    )
    assert "2.00x fewer MACs" in words_so_far(one, by_macs, notebook)
    assert "no faster" in words_so_far(replace(one, speedup=0.9), fast, notebook)
    assert words_so_far(None, fast, notebook).startswith("Nothing was tried")
    ended = Measured("a", status="failed", error="StepEnded: no time left")
    notebook.trials = [Trial(0, {}, "a", NO_TIME, measured=(ended,))]
    assert words_so_far(None, fast, notebook).startswith("Nothing was tried")
    notebook.trials = [Trial(0, {}, "a", FAILED, measured=(ended,))]
    said = words_so_far(None, fast, notebook)
    assert said == "No chain could be measured (1 failed; trials.csv says why)"
    notebook.trials = [Trial(0, {}, "a", OK, measured=(measured("a", 0.9, 8),))]
    said = words_so_far(None, fast, notebook)
    assert said == "Nothing was found that is cheaper than the baseline"


def test_the_frontier_marks_times_of_other_files() -> None:
    judge = Judge(Goal(max_drop=1.0), BASE, 5000, 4)
    own = replace(measured("own", 2.0, 10), timed="own")
    [_, words, table] = _front_blocks([own], judge, drawn=True)
    assert "Picture: frontier.png." in " ".join(words)
    assert "†" not in "\n".join([*words, *table])
    assert "as the first of 4 finalists" in " ".join(words)
    other = replace(measured("other", 3.0, 20), timed="untrained")
    [_, words, table] = _front_blocks([other, own], judge, drawn=False)
    assert "Picture" not in " ".join(words), "none is drawn before the end"
    assert "†: timed as a file of the same shapes, untrained" in " ".join(" ".join(words).split())
    assert [" †" in line for line in table[2:]] == [True, False]


def test_the_picture_has_the_speed_ups_of_the_table() -> None:
    """The machine was busy while the second one was timed, and the baseline beside it."""
    ones = [measured("a", 2.0, 10), replace(measured("b", 3.0, 20), ms=3.0), measured("c", 1.5, 5)]
    takes = steady_ms([*ones, replace(measured("d", 1.2, 5), speedup=None)])
    assert set(takes) == {"a", "b", "c", "baseline"}
    assert takes["baseline"] == 1.0
    for one in ones:
        assert takes["baseline"] / takes[one.chain] == pytest.approx(one.speedup)
    assert steady_ms([]) == {}


def test_tables_fit_their_width() -> None:
    judge = Judge(Goal(max_drop=5.0), BASE, 5000, 4)
    ones = [
        replace(measured(chain, 3.0 - n / 2, 30 - n), timed="untrained")
        for n, chain in enumerate(CHAINS)
    ]
    terminal = front_text(ones, judge)
    finals = [Final(one.chain, row(one.chain), one, 0.3, True, "equivalent", -0.01) for one in ones]
    story = Story("", "", "", 0.0, proven=CHAINS[0], tests=2)
    blocks = [*_front_blocks(ones, judge, drawn=True), *_finals_blocks(finals, story, judge.goal)]
    blocks += _mattered_blocks(replace(story, next=CHAINS))
    lines = [line for block in blocks for line in block]
    assert max(map(width, [*lines, *terminal.splitlines()])) <= 100
    texts = ["".join(char for char in text if char not in " |`") for text in terminal.splitlines()]
    for chain in CHAINS:
        whole = f"{STUDENT}->prune".replace(" ", "")
        assert whole[:20] in "".join(texts), chain
    assert "†: timed as a file of the same shapes, untrained" in terminal
    text = " ".join(" ".join(lines).split())
    assert "The test split was looked at twice" in text
    assert "held before" in text
    assert "\\`" not in text


def test_a_terminal_shows_the_nearest_of_a_long_frontier() -> None:
    judge = Judge(Goal(max_drop=1.0), BASE, 5000)
    ones = [measured(f"chain {n}", 5.0 - n / 10, 100 - n) for n in range(20)]
    lines = front_text(ones, judge).splitlines()
    assert lines[0] == "Frontier on 10,000 validation items, 6 of 20 chains:"
    assert [line.split()[2] for line in lines[3:]] == [str(n) for n in range(14, 20)]
    assert front_text([], judge) == ""


def test_in_the_end_the_chain_is_named() -> None:
    found = Found(Path(), "4.6x smaller", CHAINS[0], CHAINS[0], (), (), {}, "a table")
    text = str(found)
    assert text.startswith("a table\n\n4.6x smaller.\nThe chain: distill(student=")
    assert " ".join(text.split()).endswith(f"The chain: {CHAINS[0]}")
    assert max(map(len, text.splitlines())) <= 100
    assert "\nThe nearest chain: distill(" in str(replace(found, winner=""))
    assert str(replace(found, winner="", nearest="", frontier="")) == "4.6x smaller."


def test_within_a_latency_the_margin_of_the_verdicts_is_named() -> None:
    final = Final("a", row("a"), measured("a", 3.9, 5), 1 / 3.9, True, "equivalent", -0.008)
    story = Story("", "", "", 0.0, tests=1)
    goals = Goal(max_drop=None, target_ms=5.0), Goal(max_drop=1.0)
    texts = [" ".join(" ".join(_finals_blocks([final], story, g)[1]).split()) for g in goals]
    said = "Verdicts are about a loss of 1 point; within a latency nothing depends on them."
    assert [said in text for text in texts] == [True, False]


def test_no_other_chain_beats_the_frontier() -> None:
    judge = Judge(Goal(max_drop=1.0), BASE, 5000, 2)
    ones = [measured("a", 2.0, 10), measured("b", 3.0, 20), measured("c", 2.5, 30)]
    assert [one.chain for one in frontier(ones, judge)] == ["b", "a"]
    by_size = replace(judge, goal=Goal(by="size"))
    short = replace(measured("distill(epochs=7)", 2.0, 9), onnx_bytes=2000)
    full = replace(measured("distill(epochs=30)", 2.0, 5), onnx_bytes=2001)
    assert frontier([short, full], by_size) == [full]
    assert frontier([replace(short, onnx_bytes=1900), full], by_size)[1:] == [full]


def test_trials_are_lines_of_a_table(tmp_path: Path) -> None:
    judge = Judge(Goal(max_drop=1.0), BASE, 5000, 2)
    notebook = Notebook(tmp_path / "trials.jsonl")
    notebook.add(
        Trial(0, {"cut": "none"}, "quantize()", OK, "full", "", (measured("q", 2.0, 3),), 4.0)
    )
    notebook.add(Trial(1, {"cut": "x"}, "a -> b", "failed", "", "it broke, badly", (), 1.0))
    with open(tmp_path / "trials.jsonl", "a") as file:
        file.write('{"number": 2, "par')  # killed while it wrote
    again = Notebook.read(tmp_path / "trials.jsonl")
    assert again.trials == notebook.trials
    header, first, second = trials_csv(again.trials, judge).splitlines()
    assert header == ",".join(COLUMNS)
    assert first.startswith("0,ok,full,quantize(),,4.0,,q,2000,")
    assert next(csv.DictReader([header, first]))["timed"] == ""
    shapes = replace(measured("a -> finetune()", 2.0, 3), timed="a")
    again.trials[0] = replace(again.trials[0], measured=(shapes,))
    [line] = csv.DictReader(trials_csv(again.trials[:1], judge).splitlines())
    assert (line["measured_chain"], line["timed"]) == ("a -> finetune()", "a")
    again = Notebook.read(tmp_path / "trials.jsonl")
    assert second.startswith('1,failed,,a -> b,,1.0,"it broke, badly"')
    again.add(Trial(3, {}, "c", OK))
    assert [t.number for t in Notebook.read(tmp_path / "trials.jsonl").trials] == [0, 1, 3]


def test_what_is_said_meanwhile() -> None:
    judge = Judge(Goal(max_drop=1.0), BASE, 5000, 2)
    best = measured("quantize()", 2.0, 8)
    assert live(1, best, judge, 840) == "1 trial done, best 2.0x at −0.4 points, 14 min left"
    by_macs = replace(judge, goal=Goal(by="macs"))
    assert "best 2.0x fewer MACs at −0.4 points" in live(1, best, by_macs, 840)
    assert live(0, None, judge, -3) == "0 trials done, best nothing yet, 0 s left"
    trial = Trial(3, {}, "quantize()", OK, "full", "", (best,), 12.0)
    assert trial_line(trial, judge) == "trial 3: quantize(): 2.0x at −0.4 points, 12 s"
    for chain, words in {
        "carve(ratio=0.5) -> quantize()": "",
        "carve(ratio=0.5) -> finetune() -> quantize()": ", trained",
        "distill(student='resnet20')": ", trained",
        "repeat(2, prune_channels(macs=0.5) -> finetune())": ", trained",
    }.items():
        line = trial_line(replace(trial, chain=chain), judge)
        assert line == f"trial 3: {chain}: 2.0x at −0.4 points{words}, 12 s"
    idle = replace(trial, state=IDLE, reason=f"quantize() {IDLE}", chain="quantize()")
    assert trial_line(idle, judge) == (
        "trial 3: quantize(): 2.0x at −0.4 points; quantize() makes nothing cheaper, 12 s"
    )
    cut = "prune_channels(macs=0.4, criterion=taylor(), scope='global') -> distill(epochs=7)"
    long = replace(trial, chain=f"distill(student='resnet20(width=8)', epochs=9) -> {cut}")
    long = replace(long, state="failed", reason=" ".join(["it broke"] * 40))
    lines = trial_line(long, judge).splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(line.strip() for line in lines)
    assert text.startswith(f"trial 3: {long.chain}: 2.0x at −0.4 points, trained; failed: it broke")
    assert text.endswith("it broke, 12 s")
    failed = Trial(4, {}, "x()", "failed", "", "it broke", (), 2.0)
    assert trial_line(failed, judge) == "trial 4: x(): failed: it broke, 2 s"
    assert [points(value) for value in (0.0004, -0.0004, -0.01)] == ["0.0", "0.0", "−1.0"]
