"""What a search writes for people: the best file at the top, tables, a picture, all trials."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compress.benchmark.store.outputs import DEPLOYABLE, LAYERS, SCRIPT
from compress.recommender.chain_table import chain_table
from compress.recommender.finals import Final, optimism
from compress.recommender.goal import BY, Goal, Judge
from compress.recommender.measured import NO_TIME, Measured, Notebook, Trial
from compress.recommender.words import counts, optimism_words, points
from compress.report.formatting import plain
from compress.report.layout import wrap_chain
from compress.report.markup import MARKDOWN, PLAIN, WIDTH, Markup, code
from compress.report.pareto import pareto_png
from compress.report.pareto_data import COUNTS
from compress.results.derive import row_alone
from compress.results.record import BASELINE, Record
from compress.results.table import Row, number, text_of
from compress.system.amounts import decimal, duration
from compress.system.files import copy_atomic, sha256_file, write_atomic, write_json

REPORT, PICTURE, TRIALS, BEST = "recommendation.md", "frontier.png", "trials.csv", "best.json"
MARK, UNTRAINED = "†", "timed as a file of the same shapes, untrained"
SHOWN = 12
"""Chains of the picture that are not on the frontier."""
MOST_ROWS = 6
"""Chains of the frontier that a terminal shows."""


@dataclass(frozen=True)
class Story:
    """What a report tells besides figures."""

    title: str
    data: str
    ended: str
    """Why the search ended; '' while it runs."""
    spent: float
    """Seconds, over all its runs."""
    warnings: Sequence[str] = ()
    mattered: Mapping[str, Mapping[str, float]] | None = None
    next: Sequence[str] = ()
    left_out: Mapping[str, str] | None = None
    tests: int = 0
    """How often the test split was looked at."""
    proven: str = ""
    """The chain that reached the goal in earlier finals."""


def publish_model(out: Path, files: Path, about: Mapping[str, Any]) -> None:
    """Copy a verified model to the top of the folder, then say in `best.json` what it is."""
    for name in (SCRIPT, LAYERS):
        if (files / name).exists():
            copy_atomic(files / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
    copy_atomic(files / DEPLOYABLE, out / DEPLOYABLE)
    write_json(out / BEST, {**about, "sha256": sha256_file(out / DEPLOYABLE)})


def words_so_far(best: Measured | None, judge: Judge, notebook: Notebook) -> str:
    """Return in a sentence what is best on validation items."""
    if best is not None:
        change = points(best.change)
        return f"So far, on validation items: {_cost_words(best, judge)}, {change} points"
    if any(trial.last for trial in notebook.trials):
        return "Nothing was found that is cheaper than the baseline"
    if not any(trial.state != NO_TIME for trial in notebook.trials):
        return "Nothing was tried"
    return f"No chain could be measured ({counts(notebook.trials)}; {TRIALS} says why)"


def write_report(
    out: Path,
    story: Story,
    judge: Judge,
    notebook: Notebook,
    records: Mapping[str, Record],
    search: Path,
    said: str,
    chain: str,
    finals: Sequence[Final] = (),
) -> None:
    """Write the report, the picture and the table of trials.

    The report begins with what is `said` of the `chain` whose file lies at the top of the folder.
    Without `records` no picture is drawn: one that lies there is of an earlier moment.
    """
    front = frontier(notebook.candidates.values(), judge)
    blocks = [
        MARKDOWN.heading(story.title, 1),
        MARKDOWN.prose(f"{said}."),
        [f"`{DEPLOYABLE}`: {code(chain)}"] if chain and (out / DEPLOYABLE).exists() else [],
        MARKDOWN.prose(_progress(story, notebook)),
        *[MARKDOWN.prose(warning) for warning in story.warnings],
        *_finals_blocks(finals, story, judge.goal),
        *_front_blocks(front, judge, drawn=bool(records)),
        *_mattered_blocks(story),
    ]
    text = "\n\n".join("\n".join(block) for block in blocks if block) + "\n"
    write_trials(out, notebook.trials, judge)
    if records:
        rows = picture_rows(front, notebook, judge, records, search)
        marked = any(str(row["chain"]).endswith(MARK) for row in rows)
        words = f" ({MARK}: timed untrained)" if marked else ""  # a title has 60 letters
        about = {"suite": f"frontier on validation items{words}", "model": story.data}
        count = judge.goal.by if judge.goal.by in COUNTS else ""
        write_atomic(out / PICTURE, pareto_png(rows, about, count))
    write_atomic(out / REPORT, text.encode())


def write_trials(out: Path, trials: Iterable[Trial], judge: Judge) -> None:
    """Write the table of trials that have ended."""
    write_atomic(out / TRIALS, trials_csv(trials, judge).encode())


def _progress(story: Story, notebook: Notebook) -> str:
    ended = f"The search ended: {story.ended}." if story.ended else "The search goes on."
    count = len(notebook.trials)
    return (
        f"{ended} {count} trial{'' if count == 1 else 's'} ({counts(notebook.trials)}) in "
        f"{duration(story.spent)}; every one of them in {TRIALS}."
    )


def _cost_words(one: Measured, judge: Judge) -> str:
    cost = judge.cost(one)
    if not cost:
        return "cost not measured"
    words = BY[judge.goal.by]
    return f"{plain(1 / cost)}x {words}" if cost < 1 else f"no {words}"


# --- tables -------------------------------------------------------------------------------


def _finals_blocks(finals: Sequence[Final], story: Story, goal: Goal) -> list[list[str]]:
    if not finals:
        return []
    header = ["test pt", "val. pt", "verdict", "speed-up", "kB", "ms"]
    rows = [
        (
            final.chain,
            [
                _interval(final.row, "accuracy_delta", points),
                points(final.validation.change),
                _verdict(final, story.proven),
                _interval(final.row, "cpu_speedup", plain),
                _shown(final.row, "onnx_bytes", 1e-3),
                _shown(final.row, "cpu_ms_p50"),
            ],
        )
        for final in finals
    ]
    words = (
        "Measured once on the test split, which no step of the search has seen, and timed anew "
        "together (the whole table: finalists/table.md). pt: change of accuracy in points, on the "
        "test split and on validation items; intervals of 95 %. "
    )
    if goal.target_ms is not None:
        words += (
            f"Verdicts are about a loss of {decimal(100 * goal.margin)} point; within a latency "
            f"nothing depends on them. "
        )
    if story.tests > 1:
        times = "twice" if story.tests == 2 else f"{story.tests} times"
        words += (
            f"The test split was looked at {times}, since the search was taken up "
            f"again: each time makes its verdicts a little weaker. "
        )
    if any(final.chain == story.proven for final in finals):
        words += (
            "What reached the goal in earlier finals keeps that verdict; those of the others are "
            "corrected for one another alone (in the whole table, for all of its rows). "
        )
    said = MARKDOWN.prose(words + optimism_words(optimism(finals)))
    return [MARKDOWN.heading("Finalists", 2), said, chain_table(header, rows, MARKDOWN)]


def _verdict(final: Final, proven: str) -> str:
    if final.chain == proven:
        return "held before"
    return final.verdict or text_of(final.row, "status")


def _mark(one: Measured) -> str:
    return f" {MARK}" if one.timed_untrained else ""


def _front_blocks(front: Sequence[Measured], judge: Judge, drawn: bool) -> list[list[str]]:
    if not front:
        return []
    among = ""
    if judge.goal.target_ms is None and judge.finalists > 1:
        among = f", as the first of {judge.finalists} finalists (Holm)"
    words = MARKDOWN.prose(
        f"On {judge.baseline.items:,} validation items: no other chain is both cheaper and more "
        f"accurate (what cannot be told apart in cost counts as equal). Chance: of reaching the "
        f"goal on the test split{among}."
        + (f" Picture: {PICTURE}." if drawn else "")
        + (f" {MARK}: {UNTRAINED}." if any(map(_mark, front)) else "")
    )
    return [MARKDOWN.heading("Frontier", 2), words, _front_table(front, judge, MARKDOWN)]


def front_text(candidates: Iterable[Measured], judge: Judge) -> str:
    """Return the frontier for a terminal, of many chains those nearest to the goal; '' of none."""
    front = frontier(candidates, judge)
    if not front:
        return ""
    nearest = sorted(front, key=lambda one: (-judge.chance(one), judge.distance(one)))[:MOST_ROWS]
    title = f"Frontier on {judge.baseline.items:,} validation items"
    if len(nearest) < len(front):
        title += f", {len(nearest)} of {len(front)} chains"
    marks = [f"{MARK}: {UNTRAINED}"] if any(map(_mark, nearest)) else []
    shown = [one for one in front if one in nearest]
    return "\n".join([f"{title}:", *_front_table(shown, judge, PLAIN), *marks])


def _front_table(front: Sequence[Measured], judge: Judge, markup: Markup) -> list[str]:
    base = judge.baseline.macs
    rows = [
        (
            one.chain,
            [
                points(one.change),
                "-" if one.speedup is None else plain(one.speedup) + _mark(one),
                plain(one.onnx_bytes / 1e3),
                plain(one.macs / base) if base else "-",
                f"{judge.chance(one):.2f}",
            ],
        )
        for one in front
    ]
    return chain_table(["points", "speed-up", "kB", "MACs kept", "chance"], rows, markup)


def _mattered_blocks(story: Story) -> list[list[str]]:
    blocks = []
    shares = {name: dict(found) for name, found in (story.mattered or {}).items() if found}
    if shares:
        names = dict.fromkeys(name for found in shares.values() for name in found)
        order = sorted(names, key=lambda name: -max(f.get(name, 0.0) for f in shares.values()))
        rows = [
            [f"`{name}`", *(_share(found.get(name)) for found in shares.values())] for name in order
        ]
        words = (
            "Shares by Optuna (PED-ANOVA): of what the chain consists of, and of each technique's "
            "own options among the trials that have it."
        )
        blocks += [MARKDOWN.heading("What mattered", 2), MARKDOWN.prose(words)]
        blocks.append(_table(["draw", *(f"for {name}" for name in shares)], rows))
    if story.next:
        lines = [line for chain in story.next for line in _listed(chain)]
        blocks += [MARKDOWN.heading("What it would try next", 2), lines]
    if story.left_out:
        lines = [f"- `{name}`: {MARKDOWN.escape(why)}" for name, why in story.left_out.items()]
        blocks += [MARKDOWN.heading("What it left out", 2), lines]
    return blocks


def _listed(chain: str) -> list[str]:
    """Return the lines of an item of a list."""
    first, *more = (code(line.strip()) for line in wrap_chain(chain, WIDTH - 4))
    return [f"- {first}", *(f"  {line}" for line in more)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _shown(row: Row, name: str, scale: float = 1.0) -> str:
    value = number(row, name)
    return "-" if value is None else plain(scale * value)


def _interval(row: Row, name: str, write: Any) -> list[str]:
    """Return a figure, and on a line of its own its interval."""
    value, low, high = (number(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ["-"]
    interval = [] if low is None or high is None else [f"{write(low)} to {write(high)}"]
    return [str(write(value)), *interval]


# --- the frontier and all trials ----------------------------------------------------------


def frontier(candidates: Iterable[Measured], judge: Judge) -> list[Measured]:
    """Return the chains that no other one beats in both cost and accuracy, by cost.

    Of those that are not known to cost more than the cheapest, the most accurate, and so on.
    """
    left = [one for one in candidates if judge.cost(one) is not None]
    left.sort(key=lambda one: judge.cost(one) or 0.0)
    front: list[Measured] = []
    while left:
        ties = [one for one in left if judge.tied(one, left[0])]
        front.append(max(ties, key=lambda one: one.accuracy))
        left = [one for one in left if one.accuracy > front[-1].accuracy]
    return front


def picture_rows(
    front: Sequence[Measured],
    notebook: Notebook,
    judge: Judge,
    records: Mapping[str, Record],
    search: Path,
) -> list[dict[str, Any]]:
    """Return the rows of the picture: the baseline, the frontier, and some that are near it."""
    others = [one for one in notebook.candidates.values() if one not in front]
    others = sorted(others, key=judge.violation)[:SHOWN]
    shown = [one for one in (*front, *others) if one.chain in records]
    takes = steady_ms(shown)
    rows = []
    if BASELINE in records:
        row = row_alone(records[BASELINE], search)
        timed = {"cpu_ms_p50": takes[BASELINE], "cpu_speedup": 1.0} if takes else {}
        rows.append({**row, **timed})
    for one in shown:
        figures = {
            "chain": one.chain + _mark(one),
            "cpu_ms_p50": takes.get(one.chain),
            "cpu_speedup": one.speedup,
        }
        rows.append({**row_alone(records[one.chain], search), **figures})
    return rows


def steady_ms(timed: Iterable[Measured]) -> dict[str, float]:
    """Return the milliseconds of chains and of the baseline in which their speed-ups hold.

    Those of single quick timings drift with the machine: chains of different ones can be compared
    by their ratios to the baseline, which was timed with each of them, and by nothing else.
    """
    known = {one.chain: (one.ms, one.speedup) for one in timed if one.ms and one.speedup}
    if not known:
        return {}
    base = median(ms * speedup for ms, speedup in known.values())
    return {BASELINE: base, **{chain: base / speedup for chain, (_, speedup) in known.items()}}


COLUMNS = (
    *("number", "state", "reached", "chain", "drawn", "seconds", "reason"),
    *("measured_chain", "items", "accuracy", "change_points", "lost", "gained"),
    *("speedup", "speedup_low", "speedup_high", "ms", "timed"),
    *("onnx_bytes", "macs", "params", "chance"),
)


def trials_csv(trials: Iterable[Trial], judge: Judge) -> str:
    """Return a line for each trial, with the figures of its last sound measurement."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        line: dict[str, Any] = {
            name: getattr(trial, name)
            for name in ("number", "state", "reached", "chain", "drawn", "seconds", "reason")
        }
        if (last := trial.last) is not None:
            line |= {
                name: getattr(last, name)
                for name in (*("items", "lost", "gained", "onnx_bytes", "macs", "params"),)
            }
            line |= {
                name: getattr(last, name)
                for name in ("speedup", "speedup_low", "speedup_high", "ms", "timed")
            }
            line |= {"measured_chain": last.chain, "accuracy": round(last.accuracy, 6)}
            line |= {"change_points": round(100 * last.change, 4)}
            line |= {"chance": round(judge.chance(last), 4)}
        writer.writerow(line)
    return text.getvalue()
