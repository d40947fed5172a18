"""Numbers for people: all their digits, or a unit with a prefix, and no exponent in between."""

from __future__ import annotations

import math
from collections.abc import Mapping

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
SHORTEST, LONGEST = 1e-6, 1e15
"""Beyond these a figure without a unit has too many digits to read."""


def decimal(value: float, significant: int = 3, zeros: bool = False, commas: bool = False) -> str:
    """Return so many significant digits, or all those before the point: 0.0123, 4.56, 12345.

    `zeros` keeps those at the end (4.50); `commas` stand between thousands.
    """
    if not math.isfinite(value):
        return str(value)
    mantissa, _, exponent = f"{value:.{significant - 1}e}".partition("e")
    if value and not SHORTEST <= abs(value) < LONGEST:
        return f"{mantissa}×10^{int(exponent)}"
    places = max(0, significant - 1 - int(exponent))
    shown = f"{value:,.{places}f}" if commas else f"{value:.{places}f}"
    return shown if zeros or not places else shown.rstrip("0").rstrip(".")


def count(value: float) -> str:
    """Return a count with three significant digits, such as 76.7k or 11.0M."""
    return "".join(_scaled(value, zeros=True))


def size(value: float) -> str:
    """Return a number of bytes with three significant digits, such as 512 B or 1.3 MB."""
    return "{} {}B".format(*_scaled(value))


def plural(count: object, noun: str) -> str:
    """Return a count with its noun, such as `1 thread` or `4 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def macs_leave_out(calls: Mapping[str, int]) -> str:
    """Return what a count of MACs lacks: `MACs leave out 2 calls of conv, 1 call of mm`."""
    named = ", ".join(f"{plural(count, 'call')} of {name}" for name, count in calls.items())
    return f"MACs leave out {named}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them: 0.4 s, 45 s, 2.5 min, 12 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if 0.05 <= seconds < 0.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{decimal(minutes, 2)} min" if minutes < 90 else f"{decimal(minutes / 60, 2)} h"


def _scaled(value: float, zeros: bool = False) -> tuple[str, str]:
    """Return three significant digits of a whole number that is not negative, and their prefix."""
    rounded = float(f"{value:.3g}")
    power = sum(rounded >= 1000.0**n for n in range(1, len(PREFIXES)))
    scaled = rounded / 1000.0**power
    return decimal(scaled, zeros=zeros) if power else f"{scaled:.0f}", PREFIXES[power]
