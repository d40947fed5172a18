"""What a run says it is doing: the exact text in a log and on a terminal, by a made-up clock."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch

from compress.system import progress
from compress.system.progress import (
    Display,
    Follower,
    Recorder,
    counted,
    listening,
    mention,
    say,
    showing,
    stage,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step of a stage told, however soon it follows the one before."""
    monkeypatch.setattr(progress, "REPORT", 0.0)


def wait(display: Display, clock: Clock, seconds: float) -> None:
    """Let time pass, with a look four times a second."""
    for _ in range(int(4 * seconds)):
        clock.now += 0.25
        display.tick()


@pytest.mark.usefixtures("each")
def test_a_log_tells_what_begins_and_at_growing_intervals_that_it_still_runs(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(stream, clock)
    with listening(display):
        with stage("reading photos"), stage("checking image files", 7000, "files") as checked:
            checked.advance(3500)
            wait(display, clock, 12)
        with stage("", 2, "rows", heading=True) as rows:
            with stage("baseline [seed 0]", heading=True):
                with stage("step 1 of 1, train(epochs=2)"):
                    with stage("training on 90 items", 180, "items", done=90) as trained:
                        trained.advance(18, lambda: "epoch 2 of 2, loss 0.1234")
                        wait(display, clock, 215)
                    wait(display, clock, 60)
                with stage("writing the ONNX file"):
                    wait(display, clock, 9.75)
                with stage("verifying the file"):
                    pass
            rows.advance()
            say("baseline [seed 0]: ok")
            with stage("quantize() [seed 0]", heading=True), stage("step 1 of 1, quantize()"):
                clock.now += 3600
                display.tick()
                display.tick()
        wait(display, clock, 100)  # where nothing runs there is nothing to tell
    step = "0 of 2 rows: baseline [seed 0]: step 1 of 1, train(epochs=2)"
    so_far = "so far, 108 of 180 items, epoch 2 of 2, loss 0.1234"
    assert stream.getvalue().splitlines() == [
        "00:00  reading photos",
        "00:00    checking image files",
        "00:10  reading photos: checking image files: 10 s so far, 3,500 of 7,000 files",
        f"00:12  {step}",
        "00:12        training on 90 items",
        f"00:22  {step}: training on 90 items: 10 s {so_far}",
        f"00:42  {step}: training on 90 items: 30 s {so_far}",
        f"01:42  {step}: training on 90 items: 1 min 30 s {so_far}",
        f"02:42  {step}: training on 90 items: 2 min 30 s {so_far}",
        f"03:42  {step}: training on 90 items: 3 min 30 s {so_far}",
        # The step is not told of as soon as its training has ended, but when its time has come.
        f"04:42  {step}: 4 min 30 s so far",
        "04:47      writing the ONNX file",
        "04:56      verifying the file",
        "baseline [seed 0]: ok",
        "04:56  1 of 2 rows: quantize() [seed 0]: step 1 of 1, quantize()",
        "1:04:56  1 of 2 rows: quantize() [seed 0]: step 1 of 1, quantize(): 1 h 0 min so far",
    ]


@pytest.mark.usefixtures("each")
def test_a_terminal_shows_one_line_that_changes(clock: Clock) -> None:
    stream, long = Terminal(), "a chain of" + " many steps" * 9
    display = Display(stream, clock)
    with listening(display):
        with stage("reading photos"):
            wait(display, clock, 1)
        with stage("training on 90 items", 180, "items", done=90) as trained:
            trained.advance(45, lambda: "epoch 2")
            clock.now += 9
            display.tick()
        say("baseline [seed 0]: ok")
        say("and so on")
        with stage(long):
            display.tick()
        display.clear()
        display.clear()
    # 45 items in 9 s are 5 in a second, so what is left takes as long.
    bar = "training on 90 items:  75%|###| 135/180 [00:09<00:09, 5.00 items/s, epoch 2]"
    cut = f"...{long[-(79 - 3 - 6) :]} [0 s]"
    drawn = stream.getvalue()
    for line in ("reading photos [0 s]", "reading photos [1 s]", cut):
        assert drawn.count(f"\r{line}\x1b[J\r") == 1, line
    [shown] = re.findall("\r(training[^\r]*)\x1b\\[J\r", drawn)
    assert re.sub("[^ -~]+ *", "###", shown) == bar
    assert len(shown) <= 79
    assert drawn.endswith(f"\r\x1b[Jbaseline [seed 0]: ok\nand so on\n\r{cut}\x1b[J\r\r\x1b[J")


def test_jobs_that_run_beside_each_other_are_all_shown(clock: Clock) -> None:
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        display = Display(stream, clock)
        for node, row in (("10.0.0.1", "a()"), ("10.0.0.2", "b()")):
            display.take(["begin", f"on {node}", None, "", 0, True, False], row)
            display.take(["begin", f"step 1 of 1, {row}", None, "", 0, False, False], row)
        clock.now += 10
        display.tick()
        display.take(["gone"], "a()")
        clock.now += 20
        display.tick()
    first, second = "on 10.0.0.1: step 1 of 1, a()", "on 10.0.0.2: step 1 of 1, b()"
    assert log.getvalue().splitlines() == [
        f"00:00  {first}",
        f"00:00  {second}",
        f"00:10  {first}: 10 s so far",
        f"00:10  {second}: 10 s so far",
        f"00:30  {second}: 30 s so far",
    ]
    assert terminal.getvalue() == (
        f"\r{first} [10 s]\x1b[K\n{second} [10 s]\x1b[J\x1b[1A\r\r{second} [30 s]\x1b[J\r"
    )


@pytest.mark.usefixtures("each")
def test_what_another_process_writes_down_is_shown_here(tmp_path: Path, clock: Clock) -> None:
    stream, path = io.StringIO(), tmp_path / "stages.jsonl"
    display, follower = Display(stream, clock), Follower(path, "1")
    with listening(Recorder(path)), stage("step 1 of 1, train()", 9, "items") as step:
        step.advance(3, lambda: "loss 0.5")
        with listening(display), stage("", 2, "rows", heading=True):
            follower.look()
            wait(display, clock, 10)
    with listening(display):
        follower.look()  # its end
        wait(display, clock, 100)
    assert stream.getvalue().splitlines() == [
        "00:00  0 of 2 rows: step 1 of 1, train()",
        "00:10  0 of 2 rows: step 1 of 1, train(): 10 s so far, 3 of 9 items, loss 0.5",
    ]


def test_a_line_is_read_once_it_is_whole_and_nonsense_is_passed_over(
    tmp_path: Path, clock: Clock
) -> None:
    stream, path = io.StringIO(), tmp_path / "stages.jsonl"
    display, follower = Display(stream, clock), Follower(path, "1")
    begin = json.dumps(["begin", "a\x1b[2J step\n", 10, "items", 0, False, False])
    lines = [begin, "{", "[]", "7", '["end", 1, 2', '["begin", 1]', '["at", "x", 3]', "\udcff"]
    with listening(display):
        follower.look()
        path.write_text(begin[:20])
        follower.look()
        assert stream.getvalue() == ""
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
        follower.look()
        with path.open("a") as file:
            file.write('["at", 4, "so"]\n["begin", "inner", 1e999, "", 0, false, false]\n')
        follower.look()
        wait(display, clock, 10)
        follower.close()
        wait(display, clock, 100)
    assert stream.getvalue().splitlines() == [
        "00:00  a [2J step ",
        "00:10  a [2J step : 10 s so far, 4 of 10 items, so",
    ]


def test_a_file_that_cannot_be_written_ends_no_step(tmp_path: Path) -> None:
    with listening(Recorder(tmp_path / "absent" / "stages.jsonl")), stage("a step", 2) as step:
        step.advance()
    assert step.done == 1
    assert not (tmp_path / "absent").exists()


@pytest.mark.usefixtures("each")
def test_items_of_batches_count_for_the_stage_around(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(stream, clock)
    batches = [(torch.zeros(3),), (torch.zeros(2),)]
    with listening(display), stage("verifying", 5, "answers"):
        for seen, _ in zip((0, 3), counted(batches), strict=False):
            assert display.stages[""][0].done == seen
    assert len(list(counted(batches))) == 2, "without a stage, too"


def test_a_stage_that_is_shown_alone_names_its_headings_only(clock: Clock) -> None:
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        display = Display(stream, clock)
        with listening(display), stage("baseline", heading=True), stage("verifying the file"):
            with stage("measuring the accuracy", alone=True):
                wait(display, clock, 10)
            display.tick()
    assert log.getvalue().splitlines() == [
        "00:00  baseline: verifying the file",
        "00:00    measuring the accuracy",
        "00:10  baseline: measuring the accuracy: 10 s so far",
    ]
    shown = terminal.getvalue()
    assert "\rbaseline: measuring the accuracy [10 s]" in shown
    assert "\rbaseline: verifying the file [10 s]" in shown
    assert "file: measuring" not in shown


def test_where_it_is_not_wanted_nothing_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STILL", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.01)
    with showing(False), stage("training", 5, "items") as trained:
        trained.advance(5, lambda: pytest.fail("nobody listens"))
        mention("10 classes")
    assert capsys.readouterr() == ("", "")
    with showing(True), stage("training"), showing(True), stage("reading"):
        say("a line")
        mention("10 classes (a\x1b[2J)")
    assert capsys.readouterr().err == (
        "00:00  training\n00:00    reading\na line\n10 classes (a [2J)\n"
    )


def test_a_stream_that_is_closed_ends_no_run(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(stream, clock)
    stream.close()
    with listening(display), stage("training"):
        wait(display, clock, 30)
        say("a line")
    assert not any(display.stages.values()), "the stage has ended like any other"
