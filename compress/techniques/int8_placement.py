"""What `quantize` learns by timing: which parts stay float, and whether int8 is faster at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from time import monotonic

import onnx_ir as ir

from compress.context import StepContext
from compress.deploy.graphs import serialized
from compress.deploy.session import arrays
from compress.int8.lower import FASTER, LEFT, Lowered, fastest, matching
from compress.int8.placement import (
    FLOAT,
    NOW,
    READY,
    Clock,
    Compared,
    Files,
    Placement,
    ratio,
    sure_gain,
)
from compress.int8.rewrite import rewritten
from compress.int8.units import described, quantizable, units
from compress.model import Model
from compress.system.amounts import decimal
from compress.system.progress import stage
from compress.tasks.base import Tensors
from compress.techniques.timed_files import compared, is_large
from compress.timing.executed import executed
from compress.timing.launch import WorkerFailed

CHECKED = 1 / 12
"""The share of the seconds for which a file is timed beside the float one, after accuracy has
changed it: five of sixty."""
HARDLY = 0.75
"""A file with a larger share of the float file's bytes is hardly smaller."""
MOSTLY_MACS, MOSTLY_BYTES = 0.8, 0.35
"""A file is mostly float with a smaller share of multiply-adds as int8, or more of the float file's
bytes."""


def clock_for(samples: Tensors, context: StepContext) -> Clock:
    """Return a clock that times files on some items, one at a time; the cache keeps its answers."""
    feeds = arrays(samples)

    def clock(files: Files, seconds: float, took: Mapping[str, float]) -> Compared:
        return compared(context, files, feeds, seconds, took, monotonic)

    return clock


def placement(
    exported: ir.Model,
    samples: Tensors,
    seconds: float,
    exclude: tuple[str, ...],
    context: StepContext,
) -> Placement | None:
    """Return what is faster as float, found within some seconds; None where nothing was timed."""
    clock = clock_for(samples, context)
    with stage(f"finding what is faster as float, for up to {decimal(seconds)} s"):
        try:
            found = fastest(exported, [samples], seconds, clock, exclude, monotonic)
        except WorkerFailed as error:
            context.log.note(
                f"quantize: nothing was placed by measuring, and whether int8 is faster than "
                f"float is not known: {error}"
            )
            return None
    if not found.speedup:
        context.log.note(
            "quantize: the int8 or the float file could not be timed, so whether int8 is faster is "
            "not known"
        )
    elif found.speedup < 1:
        context.log.note(
            f"quantize: int8 takes {1 / found.speedup:.2f} times as long as float here, one item "
            f"at a time; that may be noise"
        )
    context.log.row("placement", **{**asdict(found), "floats": sorted(found.floats)})
    return found


FOUND = "the fastest int8 file that was found"
ACCURATE = "the int8 file with products that stay float for accuracy"


def as_float(
    exported: ir.Model, what: str, times: float, exclude: tuple[str, ...], context: StepContext
) -> Lowered:
    """Return the float file; `what`, the int8 one, takes so many `times` as long."""
    context.log.note(
        f"quantize: {what} takes {times:.2f} times as long as the float one here, one item at a "
        f"time, so the file is the float one; seconds=0 gives the one that is "
        + ("all int8" if what == FOUND else "not placed by measuring")
    )
    excluded = matching(list(units(rewritten(exported).graph)), exclude) if exclude else frozenset()
    rows = [
        described(node, False)
        | {"why": quantizable(node) or (LEFT if node.name in excluded else FASTER)}
        for node in exported.graph
    ]
    return Lowered(serialized(exported), rows)


def unless_slower(
    lowered: Lowered,
    exported: ir.Model,
    samples: Tensors,
    seconds: float,
    exclude: tuple[str, ...],
    context: StepContext,
) -> Lowered:
    """Return a file, or the float one if that is surely faster.

    `seconds` are those of the search before, of which this takes a small share more.
    """
    files = {NOW: lowered.content, FLOAT: serialized(exported)}
    try:
        found = clock_for(samples, context)(files, CHECKED * seconds, {READY: 0.0}).times
    except WorkerFailed as error:
        context.log.note(f"quantize: whether the file is faster is not known: {error}")
        return lowered
    times = ratio(found, FLOAT)[0]
    if sure_gain(found, FLOAT) > 0:
        return as_float(exported, ACCURATE, times, exclude, context)
    if not times:
        context.log.note(
            "quantize: the int8 or the float file could not be timed, so whether the file is "
            "faster is not known"
        )
    if times > 1:
        context.log.note(
            f"quantize: with so many products in float, the file takes {times:.2f} times as long "
            f"as the float file here; that may be noise"
        )
    return lowered


def say_if_mostly_float(
    lowered: Lowered, exported: ir.Model, model: Model, context: StepContext
) -> None:
    """Note where little of a file is int8. Of a small net's bytes, most may be its nodes."""
    share = executed(lowered.content, arrays(model.example)).int8_macs_share
    size = len(lowered.content) / len(serialized(exported))
    if mostly_float(share, size if is_large(model) else 0.0):
        context.log.note(
            f"quantize: the file is mostly float: {share or 0:.0%} of its multiply-adds are int8, "
            f"and it has {size:.0%} of the float file's bytes"
        )


def say_if_hardly_smaller(lowered: Lowered, exported: ir.Model, context: StepContext) -> None:
    """Note where a file that was to be smaller hardly is: most of its bytes are no integers."""
    size = len(lowered.content) / len(serialized(exported))
    if size > HARDLY:
        context.log.note(
            f"quantize: the file has {size:.0%} of the float file's bytes; layers.csv says what "
            f"of it is float"
        )


def mostly_float(int8_macs_share: float | None, size: float) -> bool:
    """Whether little of a file is int8, by its multiply-adds and its share of the float bytes."""
    return (int8_macs_share or 0.0) < MOSTLY_MACS or size > MOSTLY_BYTES
