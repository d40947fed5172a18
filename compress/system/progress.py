"""What a run is doing: lines in a log, or lines on a terminal that are updated in place.

Whatever may take long reports it with `stage`; without a listener, that costs nothing. The process
of a step writes its reports to a file (`Recorder`), which the run's own process reads (`Follower`)
and shows (`Display`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from tqdm import tqdm

REPORT = 0.5
"""Seconds between two reports of how far a stage is."""
TICK = 0.25
"""Seconds between two updates of the display."""
STILL = 10.0
"""Seconds after which a log reports that a stage still runs; then 30, 90, and every minute."""
CHUNK = 1 << 16
"""Bytes of a step's file that are read at a time."""
BAR = 60
"""Columns of a terminal that a bar with its figures may take."""
STAGES = "stages.jsonl"
"""The name of the file that the process of a step writes."""
LINES = 8
"""Jobs that a terminal shows at once, on as many lines."""

Event = Sequence[Any]
"""`begin` with the fields of `Running`, `at` with how far it is, or `end`; as JSON. `gone`: the
source of the stages has ended, and all of them with it."""
T = TypeVar("T", bound=Sequence[Any])


class Listener(Protocol):
    """Gets the events of stages, and their source: '' is this process."""

    def take(self, event: Event, source: str = "") -> None: ...


_listener: Listener | None = None
_stages: list[Stage] = []
"""Those of this process that have begun and not ended."""


class Stage:
    """Something that takes a while, and how far it is."""

    def __init__(self, listener: Listener | None, done: int, every: float) -> None:
        self.listener, self.done, self.every = listener, done, every
        self.reported = float("-inf")

    def advance(self, count: int = 1, words: Callable[[], str] = str) -> None:
        """Report that so much more is done; `words` gives details, and is called now and then."""
        self.done += count
        if self.listener is not None and time.monotonic() - self.reported >= self.every:
            self.listener.take(["at", self.done, words()])
            self.reported = time.monotonic()


@contextlib.contextmanager
def stage(
    text: str,
    total: int | None = None,
    unit: str = "",
    *,
    done: int = 0,
    heading: bool = False,
    alone: bool = False,
) -> Iterator[Stage]:
    """Report what is done within this context: `done` of `total` units, where that is known.

    A `heading` stands before the stages inside it, and has no line of its own. A stage that is
    shown `alone` has headings before it, but not the stage that it happens to be a part of.
    """
    listener = _listener
    running = Stage(listener, done, 0.0 if heading else REPORT)
    if listener is None:
        yield running
        return
    listener.take(["begin", text, total, unit, done, heading, alone])
    _stages.append(running)
    try:
        yield running
    finally:
        _stages.remove(running)
        listener.take(["end"])


def counted(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches (tuples of tensors), and count their items for the stage that is running."""
    for batch in batches:
        yield batch
        if _stages:
            _stages[-1].advance(len(batch[0]))


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Have a listener get the events of stages within this context."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextlib.contextmanager
def showing(progress: bool) -> Iterator[None]:
    """Show on standard error what is done within this context, unless there is a listener."""
    if not progress or _listener is not None or sys.stderr is None:
        yield
        return
    display, over = Display(sys.stderr), threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            display.tick()

    thread = threading.Thread(target=tick, name="progress", daemon=True)
    thread.start()
    try:
        with listening(display):
            yield
    finally:
        over.set()
        thread.join()
        display.clear()


def say(line: str) -> None:
    """Write a line to standard error, above what is shown there."""
    display = _listener if isinstance(_listener, Display) else Display(sys.stderr)
    display.say(line)


def mention(line: str) -> None:
    """Write a line above what is shown, if anything is: not where progress is not wanted."""
    if isinstance(_listener, Display):
        _listener.say(_plain(line))


# --- across processes ---------------------------------------------------------------------


class Recorder:
    """A listener that appends what it gets to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, event: Event, source: str = "") -> None:
        with contextlib.suppress(OSError), open(self.path, "a") as file:
            file.write(json.dumps(event) + "\n")


def hand_on(event: Event | bytes, source: str) -> None:
    """Pass another process's event to the listener of this one; as bytes, it is JSON."""
    with contextlib.suppress(Exception):  # a step may write anything there
        if _listener is not None:
            _listener.take(json.loads(event) if isinstance(event, bytes) else event, source)


class Follower:
    """Hands on the new events that another process records in a file."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self.read = 0

    def look(self) -> None:
        if _listener is None:
            return
        try:
            with open(self.path, "rb") as file:
                file.seek(self.read)
                content = file.read(CHUNK)
        except OSError:  # there are none yet
            return
        whole = content[: content.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            hand_on(line, self.source)

    def close(self) -> None:
        self.look()
        hand_on(["gone"], self.source)


# --- for people ---------------------------------------------------------------------------


@dataclass
class Running:
    """A stage, as it is shown."""

    text: str
    total: int | None
    unit: str
    done: int
    heading: bool
    alone: bool
    since: float
    first: int = field(init=False)
    words: str = ""
    due: float = STILL
    """Seconds after its beginning at which a log next reports that it still runs."""

    def __post_init__(self) -> None:
        self.first = self.done

    @property
    def share(self) -> str:
        return "" if self.total is None else f"{self.done:,} of {self.total:,} {self.unit}"

    def put_off(self, elapsed: float) -> None:
        while self.due <= elapsed:
            self.due = min(3 * self.due, self.due + 60)


class Display:
    """A listener that writes to a stream: lines that change on a terminal, else a log."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.live = stream.isatty()
        self.began = clock()
        self.stages: dict[str, list[Running]] = {"": []}
        self.lock = threading.RLock()
        self.drawn = ""
        self.last: list[str] = []
        """The path of the log's last line."""

    def take(self, event: Event, source: str = "") -> None:
        kind, *values = event
        now = self.clock()
        with self.lock:
            running = self.stages.setdefault(source, [])
            if kind == "begin":
                text, total, unit, done, heading, alone = values
                total = None if total is None else int(total)
                kinds = bool(heading), bool(alone)
                running.append(Running(str(text), total, str(unit), int(done), *kinds, now))
                if not heading and not self.live:
                    self._log(self._path(source))
            elif kind == "at" and running:
                running[-1].done, running[-1].words = int(values[0]), str(values[1])
            elif kind == "end" and running:
                running.pop()
                for outer in running[-1:]:
                    outer.put_off(now - outer.since)
            elif kind == "gone" and source:
                del self.stages[source]

    def tick(self) -> None:
        """Show what is due now."""
        with self.lock:
            busy = [source for source, running in self.stages.items() if running]
            if self.live:
                self._draw([source for source in busy if source] or busy)
                return
            for source in busy:
                last = self.stages[source][-1]
                elapsed = self.clock() - last.since
                if elapsed >= last.due and not last.heading:
                    last.put_off(elapsed)
                    facts = [f"{_lasting(elapsed)} so far", last.share, last.words]
                    self.last = []  # a reader of this line alone must know what it is about
                    self._log([*self._path(source), ", ".join(filter(None, facts))])

    def say(self, line: str) -> None:
        """Write a line that stays."""
        with self.lock:
            self.clear()
            self._write(f"{line}\n")
            self.last = []

    def clear(self) -> None:
        """Erase what was drawn."""
        with self.lock:
            if self.drawn:
                self._write("\r\x1b[J")
            self.drawn = ""

    def _log(self, path: list[str]) -> None:
        """Write a line; what its path shares with the line before becomes white space."""
        same = 0
        while same < min(len(path) - 1, len(self.last)) and path[same] == self.last[same]:
            same += 1
        line = "  " * same + _plain(": ".join(path[same:]))
        self._write(f"{tqdm.format_interval(self.clock() - self.began)}  {line}\n")
        self.last = path

    def _draw(self, sources: Sequence[str]) -> None:
        """Draw a line for each source; the cursor stays where the first begins."""
        lines = [self._line(source) for source in sources[-LINES:]]
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        drawn = "\x1b[K\n".join(lines) + f"\x1b[J{up}\r"
        if lines and drawn != self.drawn:
            self._write(f"\r{drawn}")
            self.drawn = drawn

    def _line(self, source: str) -> str:
        last, columns = self.stages[source][-1], self._columns()
        elapsed = self.clock() - last.since
        name, words = _plain(": ".join(self._path(source))), _plain(last.words)
        if last.total and not last.heading:
            return tqdm.format_meter(
                last.done,
                last.total,
                elapsed,
                columns,
                _tail(name, max(columns - BAR - len(words), 20)),
                unit=f" {last.unit}",
                unit_scale=True,
                initial=last.first,
                postfix=words,
            )
        facts = f" [{', '.join(filter(None, [_lasting(elapsed), words]))}]"
        return _tail(name, columns - len(facts)) + facts

    def _columns(self) -> int:
        """Return how many columns can be written to without a new line."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns - 1
        except (OSError, ValueError):
            return 79

    def _path(self, source: str) -> list[str]:
        """Return the texts of a source's stages, outermost first."""
        running = self.stages[""] + (self.stages[source] if source else [])
        if running and running[-1].alone:
            running = [r for r in running if r.heading or r is running[-1]]
        parts = (f"{r.share} {r.text}".strip() if r.heading else r.text for r in running)
        return list(filter(None, parts))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # full, or closed
            self.stream.write(text)
            self.stream.flush()


def _lasting(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _plain(text: str) -> str:
    """Return a text without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else "..." + text[len(text) - max(most - 3, 0) :]
