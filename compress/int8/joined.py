"""One range for values that are concatenated, where it does for all: their integers are copied.

onnxruntime's concatenation translates every integer of an input whose scale or zero point is not
the output's, which takes several times as long as to copy it (qlinear_concat.cc).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from compress.deploy.observe import Observed
from compress.int8.ranges import Range, judged, of_interval
from compress.int8.units import Unit, array

LOSS = 2.0
"""Decibels of its SQNR that a value may lose to share its range."""


def joined(
    chosen: Mapping[str, Unit],
    ranges: Mapping[str, Range],
    observed: Mapping[str, Observed],
    settled: Collection[str] = (),
) -> dict[str, Range]:
    """Return new ranges of values that chosen units concatenate, and of what comes of it.

    Values share one where none loses much by it, one input after the other. `settled` are values
    whose ranges are to stay.
    """
    moved, tops = _moved(chosen), _tops(chosen)
    groups: dict[str, list[str]] = {}
    found: dict[str, Range] = {}
    for unit in chosen.values():
        if unit.kind != "Concat":
            continue
        output = moved.get(str(unit.output.name), str(unit.output.name))
        for value in unit.activations:
            source = moved.get(str(value.name), str(value.name))
            one, other = (groups.setdefault(name, [name]) for name in (output, source))
            if one is other:
                continue
            both = [*one, *other]
            if any(name in settled or name not in observed for name in both):
                continue
            proposed = [found.get(name, ranges[name]) for name in (output, source)]
            top = min((tops[name] for name in both if name in tops), default=None)
            shared = _shared(both, proposed, ranges, observed, top)
            found |= shared
            if shared:
                groups |= dict.fromkeys(both, both)
    return found


def _moved(chosen: Mapping[str, Unit]) -> dict[str, str]:
    """Return by name the value that another one is moved from, through all units that move."""
    found: dict[str, str] = {}
    for unit in chosen.values():
        if unit.passing:
            source = str(unit.activations[0].name)
            found |= {str(value.name): found.get(source, source) for value in unit.outputs}
    return found


def _tops(chosen: Mapping[str, Unit]) -> dict[str, float]:
    """Return up to which level a range clips, by the values whose clipping is their range's work.

    So that it must begin at zero.
    """
    found = {}
    for unit in chosen.values():
        if unit.clipping is not None:
            ends = unit.clipping.inputs[2:]
            top = array(ends[0]) if ends else None
            found[str(unit.output.name)] = float("inf") if top is None else float(top)
    return found


def _shared(
    names: Sequence[str],
    proposed: Sequence[Range],
    own: Mapping[str, Range],
    observed: Mapping[str, Observed],
    top: float | None,
) -> dict[str, Range]:
    """Return one range for all values, with each one's SQNR; nothing if one loses too much.

    With `top`, ranges count that begin at zero and end there at the latest.
    """
    low, high = (min(one.low for one in proposed), max(one.high for one in proposed))
    best: dict[str, Range] = {}
    least = -LOSS
    for one in _different([*proposed, of_interval(low, high)]):
        if top is not None and (one.zero or one.high > top * (1 + 1e-6)):
            continue
        every = {
            name: replace(judged(one, observed[name]), method="shared by concatenation")
            for name in names
        }
        gained = min(every[name].sqnr - own[name].sqnr for name in names)
        if gained >= least:
            best, least = every, gained
    return best


def _different(proposed: Sequence[Range]) -> Iterator[Range]:
    yield from {(one.scale, one.zero): one for one in proposed}.values()
