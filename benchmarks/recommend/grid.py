"""A grid of chains, each trained fully once: what there is to find, and what finding it costs.

    python benchmarks/recommend/grid.py make --out reports/recommend
    python benchmarks/recommend/grid.py replay --out reports/recommend

`make` measures every chain of a small space on 14 x 14 MNIST (a part of it), with a `resnet20` of
half width: without training, with a short and with a full recovery, on validation and test items.
It can be stopped and goes on. `replay` searches these rows instead of training: `recommend`, random
search and Optuna alone, with the seconds that each would have spent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np
from mnist14 import write_arrays

from compress.api import prepare
from compress.benchmark.plan.plan import Plan, with_chains
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import FINAL, SEARCH, Suite
from compress.compressor import Compressor
from compress.recommender.draw import AtRandom, Params
from compress.recommender.engine import Engine
from compress.recommender.finals import finalists
from compress.recommender.goal import Goal, Judge, finalists_for
from compress.recommender.lab import BenchLab, opened
from compress.recommender.measured import Measured, Notebook
from compress.recommender.question import space_for
from compress.recommender.space import Space
from compress.recommender.space_file import Wishes, read_wishes
from compress.recommender.study import Asked, Study
from compress.recommender.warm import warm_start
from compress.recommender.work import shapes_of
from compress.results.record import BASELINE
from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.verdicts import holm
from compress.system.files import append_line, write_atomic

EPOCHS = 4
MODEL, BASE = "resnet20(width=8)", "train(epochs=10)"
SPACE = """
only = ["distill", "carve", "prune_channels", "quantize"]
longest = 3

[distill]
student = ["resnet20(width=4)"]
loss = ["kd"]
learning_rate = [0.001]

[carve]
ratio = [0.67, 0.34]
by = ["even"]

[prune_channels]
macs = [0.7, 0.5, 0.35]
criterion = ["l2"]
scope = ["local"]

[quantize]
max_drop = ["none"]
"""
ROWS = "grid.jsonl"
DROPS = (0.5, 1.0, 2.0)
SEEDS = 10
SHARES = (0.25, 0.5)
NEAR = 1.03


@dataclass(frozen=True)
class GridRow:
    """A chain: on validation items (with its speed-up), on test items, and what it took."""

    full: str
    """The chain of the grid that it belongs to."""
    level: str
    """'untrained', 'short', 'full' or 'baseline'."""
    validation: Measured
    steps: tuple[tuple[str, float], ...]
    """Text and seconds of each step."""
    measuring: float
    timing: float
    test_items: int = 0
    test_lost: int = 0
    test_gained: int = 0

    @property
    def test(self) -> Difference:
        return Difference(self.test_lost, self.test_gained, self.test_items)


def wishes(folder: Path) -> Wishes:
    """Return what every chain of the grid is made of."""
    (folder / "space.toml").write_text(SPACE)
    return read_wishes(folder / "space.toml")


def levels_of(space: Space, params: Params) -> Iterator[tuple[str, Compressor]]:
    """Yield the chains that a search would measure of a draw."""
    full = space.chain(params, EPOCHS)
    if (shapes := shapes_of(full)) is not None:
        yield "untrained", shapes
        short = space.chain(params, EPOCHS // 4)
        if repr(short) != repr(full):
            yield "short", short
    yield "full", full


# --- making it ----------------------------------------------------------------------------


def plans(folder: Path) -> tuple[Plan, Plan]:
    """Return the plan of the search and that of the test."""
    data = write_arrays(folder / "mnist14.npz")
    suite = Suite(
        "grid",
        f"arrays:{data}",
        MODEL,
        (),
        baseline=BASE,
        timings=("cpu",),
        controls=False,
        splits=FINAL,
        precision="float32",
    )
    final, _, _ = prepare(suite, step_threads=1, threads=1, progress=False)
    searched = replace(final.suite, splits=SEARCH)
    return replace(final, suite=searched, data=splits_for(SEARCH, final.data)), final


def make(out: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    rows = read(out / ROWS)
    searched, final = plans(work)
    space = space_for(searched, wishes(work))
    draws = [params for _, params in space.all(EPOCHS)]
    samples = list(dict.fromkeys(repr(form.sample) for form in space.forms))
    print(f"{len(draws)} chains")
    with (
        opened(with_chains(searched, samples), work / "search", work / "steps", 2.0) as lab,
        opened(with_chains(final, samples), work / "test", work / "steps", 2.0) as test,
    ):
        lab.begin()
        test.begin()
        if BASELINE not in rows:
            note(out, lab, test, BASELINE, lab.baseline, "baseline", 0.0)
        for number, params in enumerate(draws):
            full = repr(space.chain(params, EPOCHS))
            for level, chain in levels_of(space, params):
                if (text := repr(chain)) in rows:
                    continue
                [one] = lab.measure([text], lab.now() + 3600)
                started = lab.now()
                if level != "short":
                    [one] = lab.time([one])
                timing = lab.now() - started
                rows[text] = note(out, lab, test, full, one, level, timing)
            print(f"{number + 1} of {len(draws)}: {full}", flush=True)


def note(
    out: Path, lab: BenchLab, test: BenchLab, full: str, one: Measured, level: str, timing: float
) -> GridRow:
    log = lab.records[one.chain].log
    figures = {}
    if level == "full" and one.status == "ok":
        [tested] = test.measure([one.chain], lab.now() + 3600)
        figures = {
            "test_items": tested.items,
            "test_lost": tested.lost,
            "test_gained": tested.gained,
        }
    row = GridRow(
        full,
        level,
        one,
        tuple((line["step"], line["seconds"]) for line in log if line["kind"] == "step"),
        sum(line["seconds"] for line in log if line["kind"] == "measuring"),
        timing,
        **figures,
    )
    append_line(out / ROWS, asdict(row))
    return row


def read(path: Path) -> dict[str, GridRow]:
    rows: dict[str, GridRow] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = msgspec.convert(json.loads(line), GridRow)
        rows[row.validation.chain] = row
    return rows


# --- searching it -------------------------------------------------------------------------


@dataclass
class ReplayLab:
    """A lab in which everything was measured before; its clock goes by what that took then."""

    rows: Mapping[str, GridRow]
    clock: float = 0.0
    done: set[str] = field(default_factory=set)
    """Beginnings of chains whose steps are in the store, and rows that were measured."""
    order: list[tuple[float, str]] = field(default_factory=list)
    """When which chain was measured."""

    def __post_init__(self) -> None:
        self.baseline = self.rows[BASELINE].validation

    def _left(self, text: str) -> tuple[float, list[str]]:
        row, before, seconds = self.rows[text], "", 0.0
        new = []
        for step, taken in row.steps:
            before = f"{before} -> {step}"
            if before not in self.done:
                seconds += taken
                new.append(before)
        if text not in self.done:
            seconds += row.measuring
            new.append(text)
        return seconds, new

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        for text in chains:
            seconds, new = self._left(text)
            self.clock += seconds
            self.done |= set(new)
            self.order.append((self.clock, text))
        return [
            replace(self.rows[text].validation, speedup=None, timed="", ms=None) for text in chains
        ]

    def time(self, measured: Sequence[Measured]) -> list[Measured]:
        found = []
        for one in measured:
            self.clock += self.rows[one.chain].timing
            found.append(replace(self.rows[one.chain].validation, candidate=one.candidate))
        return found

    def predict(self, chain: Compressor, macs: float) -> float:
        return self._left(repr(chain))[0]

    def epoch(self) -> float:
        return 1.0

    def now(self) -> float:
        return self.clock


class RandomStudy(Study):
    """Draws by chance."""

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def ask(self, by_chance: bool = False) -> Asked:
        _, params = self.space.draw(AtRandom(self.generator), 1)
        return Asked(None, params, "")  # type: ignore[arg-type]

    def tell(self, asked: Asked, *_: object, **__: object) -> None:
        pass


KINDS = ("recommend", "random", "optuna")


def searched(
    kind: str,
    space: Space,
    rows: Mapping[str, GridRow],
    judge: Judge,
    most: int,
    seed: int,
    budget: float,
) -> str:
    """Return the chain that a search of some seconds would have named; '' for none."""
    lab = ReplayLab(rows)
    study = (
        RandomStudy(space, seed) if kind == "random" else Study(space, seed, plain=kind == "optuna")
    )
    notebook = Notebook()
    engine = Engine(space, judge, lab, study, notebook, budget, EPOCHS, stages=kind == "recommend")
    if kind == "recommend":
        engine.warm = lambda lowered: warm_start(space, lowered)
    engine.run()
    chosen = finalists(notebook.candidates.values(), judge, most)
    passed = qualified(rows, [one.chain for one in chosen], judge)
    return min(passed, key=lambda text: judge.value(rows[text].validation), default="")


def qualified(rows: Mapping[str, GridRow], chains: Sequence[str], judge: Judge) -> list[str]:
    """Return those that are shown on the test items to lose less than the margin, by Holm."""
    able = [text for text in chains if rows[text].test_items and rows[text].validation.speedup]
    ps = holm([rows[text].test.noninferiority_p(judge.goal.margin) for text in able])
    cheaper = [text for text, p in zip(able, ps, strict=True) if p <= ALPHA]
    return [text for text in cheaper if (judge.cost(rows[text].validation) or 1.0) < 1]


def replay(out: Path, work: Path) -> None:
    rows = read(out / ROWS)
    with tempfile.TemporaryDirectory() as folder:
        space = space_for(plans(Path(folder))[0], wishes(Path(folder)))
    full = {text: row for text, row in rows.items() if row.level == "full"}
    cost = ReplayLab(rows)
    for text in full:
        cost.measure([text], 0)
        cost.time([rows[text].validation])
    test_items = max(row.test_items for row in full.values())
    lines = [
        f"{len(full)} chains, trained fully: {cost.clock:.0f} s with shared beginnings; "
        f"{rows[BASELINE].validation.items} validation items, {test_items} test items.",
        "",
        "| max-drop | grid's best | speed-up | search | share | within 3 % | mean ratio | none |",
        "|" + " --- |" * 8,
    ]
    for drop in DROPS:
        goal = Goal(max_drop=drop)
        judge = Judge(goal, rows[BASELINE].validation, test_items)
        most = finalists_for(goal, test_items)
        able = [text for text in full if qualified(rows, [text], judge)]
        if not able:
            lines.append(f"| {drop} | none qualifies | | | | | | |")
            continue
        best = max(able, key=lambda text: rows[text].validation.speedup or 0.0)
        fastest = rows[best].validation.speedup or 0.0
        for kind in KINDS:
            for share in SHARES:
                found = [
                    searched(kind, space, rows, judge, most, seed, share * cost.clock)
                    for seed in range(SEEDS)
                ]
                ratios = [
                    fastest / (rows[text].validation.speedup or 1.0) for text in found if text
                ]
                near = sum(ratio <= NEAR for ratio in ratios)
                mean = f"{fmean(ratios):.3f}" if ratios else "-"
                lines.append(
                    f"| {drop} | `{best}` | {fastest:.2f} | {kind} | {share:.0%} | "
                    f"{near} of {SEEDS} | {mean} | {SEEDS - len(ratios)} |"
                )
    text = "\n".join(lines) + "\n"
    write_atomic(out / "grid.md", text.encode())
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "replay"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "compress-grid")
    options = parser.parse_args()
    {"make": make, "replay": replay}[options.what](options.out, options.work)


if __name__ == "__main__":
    main()
