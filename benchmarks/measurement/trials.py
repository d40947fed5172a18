"""Trials kept line by line, so that a run that was stopped goes on, and tables made of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from compress import stats, timing
from compress.stats.control import Control
from compress.stats.proportions import wilson
from compress.stats.ratios import Ratio, speedup
from compress.stats.verdicts import speed_verdicts
from compress.system.environment import cpu_info, cpu_threads
from compress.system.files import append_line, digest, sha256, write_atomic
from compress.timing.summary import Timings

Trial = Mapping[str, Any]


def run_trials(
    path: Path, wanted: Sequence[dict[str, Any]], once: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[Trial]:
    """Do every trial that the file does not hold yet; return all that are wanted."""
    here = source()
    done = {_key(line["trial"]): line for line in _lines(path)}
    if any(line["source"] != here for line in done.values()):
        raise SystemExit(
            f"{path} holds trials of another machine or of other code: move it away to start anew"
        )
    for trial in tqdm(wanted, unit="trial", disable=not sys.stderr.isatty()):
        if _key(trial) not in done:
            line = {"trial": trial, "source": here, "found": once(trial)}
            append_line(path, line)
            done[_key(trial)] = line
    return [done[_key(trial)] for trial in wanted]


def source() -> dict[str, str]:
    """Return what trials of one table must have in common: the machine and the timing code."""
    folders = [Path(str(room.__file__)).parent for room in (stats, timing)]
    code = {
        f"{folder.name}/{path.name}": sha256(path.read_bytes())
        for folder in folders
        for path in sorted(folder.glob("*.py"))
    }
    return {"machine": machine(), "onnxruntime": version("onnxruntime"), "code": digest(code)}


def _lines(path: Path) -> Iterable[Trial]:
    return map(json.loads, path.read_text().splitlines()) if path.exists() else ()


def _key(trial: Trial) -> str:
    return json.dumps(trial, sort_keys=True)


def share(hits: int, count: int) -> str:
    """Return a share with its 95 % interval (Wilson's)."""
    if not count:
        return "-"
    low, high = wilson(hits, count)
    return f"{hits} of {count} ({hits / count:.1%}; {low:.1%} to {high:.1%})"


def outcome(timings: Timings, name: str, over: str, setting: str) -> dict[str, Any]:
    """Return what a trial keeps of one file timed against another. Raises if it did not run."""
    row, control = timings[name, setting], timings.controls[setting]
    if row.error:
        raise RuntimeError(row.error)
    ratio = against(timings, name, over, setting)
    return {
        "ms": row.p50_ms,
        "speedup": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": claimed(ratio, control),
        "margin": control.margin,
        "trusted": control.trusted,
        "denominator": control.denominator,
        "processes": row.processes,
        "seconds": timings.raw_timings.seconds,
    }


def against(timings: Timings, name: str, over: str, setting: str) -> Ratio:
    """Return the speed-up of one file over another at the default level, whatever is fastest."""
    pairs = zip(
        timings.raw_timings.series(setting, over),
        timings.raw_timings.series(setting, name),
        strict=True,
    )
    both = [(b["medians"], c["medians"]) for b, c in pairs if b is not None and c is not None]
    return speedup([np.array(b) for b, _ in both], [np.array(c) for _, c in both])


def claimed(ratio: Ratio, control: Control) -> str:
    """Return the verdict of a table whose only row this is."""
    (verdict,) = speed_verdicts([ratio], control.bar, control.trusted)
    return verdict or "untrusted"


def machine() -> str:
    name, flags = cpu_info()
    return f"Machine: {name}; {cpu_threads()} cores; {' '.join(flags)}."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, its columns padded."""
    lines = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) + " |" for x in lines
    ]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([out[0], rule, *out[1:]]) + "\n"


def publish(path: Path, title: str, parts: Sequence[str], command: str) -> None:
    """Write and print a report, with the command that gives it."""
    body = "\n".join([f"# {title}\n", *parts, machine(), f"\nThis gives it: `{command}`\n"])
    write_atomic(path, body)
    print(body)
