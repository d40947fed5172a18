"""A grid of chains, each trained fully once: what there is to find, and what finding it costs.

    python benchmarks/recommend/grid.py make --grid cifar10 --out reports/recommend
    python benchmarks/recommend/grid.py time --grid cifar10 --out reports/recommend
    python benchmarks/recommend/replay.py --grid cifar10 --out reports/recommend

`make` measures every chain of a small space (`grids.py`): without training, with a short and with a
full recovery, on validation and test items. What it takes is counted in CPU seconds of one thread,
which do not depend on what else the machine does. `time` times the files, for which nothing else
may run; `ready` gathers them beforehand. All can be stopped and go on. `replay.py` searches these
rows instead of training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from grid_rows import TIMES, GridRow, read, rows_path, times_of
from grids import GRIDS, Grid

from compress.benchmark.plan.plan import with_chains
from compress.recommender.lab import BenchLab, opened
from compress.recommender.measured import Measured
from compress.recommender.question import space_for
from compress.recommender.work import shapes_of
from compress.results.record import BASELINE
from compress.system.files import append_line
from compress.techniques import chain as parse

GROUP = 10
"""Files that are timed in turns, with the baseline's."""
GROUP_SECONDS = 25.0
QUICK = 2.0
"""Seconds for which a search times one file."""
LONG = 24 * 3600.0
"""Seconds that a chain may take: it may be stopped for a while."""
KILLED = "StepEnded"
"""How the error begins of a step whose process was ended, as where others fill the memory."""
ATTEMPTS = 5
HOPELESS = -0.1
"""A chain that loses more than this on validation items is not tested: it holds no margin."""


def make(grid: Grid, out: Path, work: Path, backwards: bool) -> None:
    """Measure every chain that has no row yet; `backwards` where another process makes them too."""
    work.mkdir(parents=True, exist_ok=True)
    searched, final = grid.plans(work)
    space = space_for(searched, grid.wishes(work))
    draws = [params for _, params in space.all(grid.epochs)]
    fulls = {repr(space.chain(params, grid.epochs)) for params in draws}
    samples = list(dict.fromkeys(repr(form.sample) for form in space.forms))
    print(f"{len(draws)} chains")
    place, store = work / ("backwards" if backwards else "forwards"), work / "steps"
    with (
        opened(with_chains(searched, samples), place / "search", store, QUICK) as lab,
        opened(with_chains(final, samples), place / "test", store, QUICK) as test,
    ):
        lab.begin()
        test.begin()
        if BASELINE not in read(out, grid.name):
            note(grid, out, lab, test, BASELINE, BASELINE, "baseline")
        for number, params in enumerate(reversed(draws) if backwards else draws):
            full = repr(space.chain(params, grid.epochs))
            for level, chain in grid.levels_of(space, params):
                if (text := repr(chain)) not in read(out, grid.name):
                    known = "full" if text in fulls else level
                    note(grid, out, lab, test, full, text, known)
            print(f"{number + 1} of {len(draws)}: {full}", flush=True)


def measured(lab: BenchLab, text: str) -> Measured:
    """Measure a chain; again if its process was ended for what is not its fault."""
    for _ in range(ATTEMPTS):
        [one] = lab.measure([text], lab.now() + LONG)
        if not one.error.startswith(KILLED):
            break
    return one


def note(
    grid: Grid, out: Path, lab: BenchLab, test: BenchLab, full: str, text: str, level: str
) -> GridRow:
    """Measure a chain, test it if it was trained fully and may hold a margin, and keep its row."""
    one = lab.baseline if text == BASELINE else measured(lab, text)
    log = lab.records[text].log
    figures = {}
    if level == "full" and one.status == "ok" and one.change > HOPELESS:
        tested = measured(test, text)
        figures = {
            "test_items": tested.items,
            "test_lost": tested.lost,
            "test_gained": tested.gained,
        }
    row = GridRow(
        full,
        level,
        one,
        tuple((line["step"], line["cpu_seconds"]) for line in log if line["kind"] == "step"),
        sum(line["cpu_seconds"] for line in log if line["kind"] == "measuring"),
        **figures,
    )
    append_line(rows_path(out, grid.name), asdict(row))
    return row


def ready(grid: Grid, out: Path, work: Path) -> list[str]:
    """Put a file of each shape that has no times yet in one place; return their chains.

    Trained chains have the shapes, and so the times, of those without training.
    """
    known = times_of(out, grid.name).read()
    shapes = [
        text
        for text, row in read(out, grid.name).items()
        if row.level == "full" and row.validation.status == "ok" and shapes_of(parse(text)) is None
    ]
    left = [text for text in shapes if (text,) not in known]
    searched, _ = grid.plans(work)
    with opened(searched, work / "timed", work / "steps", QUICK) as lab:
        if missing := [text for text in left if text not in lab.records]:
            lab.begin()
            lab.measure(missing, lab.now() + LONG)  # from the store
    return left


def time(grid: Grid, out: Path, work: Path) -> None:
    """Time files in groups. A search times one alone, for less: what that takes is in `seconds`."""
    left = ready(grid, out, work)
    kept, rows = times_of(out, grid.name), read(out, grid.name)
    searched, _ = grid.plans(work)
    with opened(searched, work / "timed", work / "steps", QUICK) as lab:
        started = lab.now()
        lab.time([rows[left[0]].validation])
        alone = lab.now() - started
        lab.timing_seconds = GROUP_SECONDS
        for group in grouped(left):
            for one in lab.time([rows[text].validation for text in group]):
                figures = {name: getattr(one, name) for name in TIMES}
                kept.add({"chain": one.chain, **figures, "seconds": round(alone, 3)})


def grouped(chains: list[str]) -> Iterator[list[str]]:
    """Yield groups of about equally many chains, far ones of the list together."""
    count = -(-len(chains) // GROUP)
    for number in range(count):
        yield chains[number::count]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "ready", "time"])
    parser.add_argument("--grid", choices=list(GRIDS), default="cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "compress-grid")
    parser.add_argument("--backwards", action="store_true", help="make, beside another process")
    options = parser.parse_args()
    grid = GRIDS[options.grid]
    work = options.work / grid.name
    if options.what == "make":
        make(grid, options.out, work, options.backwards)
    else:
        {"ready": ready, "time": time}[options.what](grid, options.out, work)


if __name__ == "__main__":
    main()
