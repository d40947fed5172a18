"""No number for people has an exponent where digits or a unit's prefix would do."""

from __future__ import annotations

import ast
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report import formatting
from compress.results.timed import Timed
from compress.system.amounts import PREFIXES, count, decimal, duration, size

PACKAGE = Path(__file__).resolve().parents[1] / "compress"
EXPONENT = re.compile(r"\de[+-]?\d", re.IGNORECASE)
TIMED = Timed("", "", "", {name: f"a_{name}" for name in ("speedup", "ms_p50", "ms_p90", "ms_iqr")})
READABLE = st.floats(1e-6, 1e15, exclude_max=True)


@pytest.mark.parametrize(
    ("value", "shown", "padded"),
    [
        (0.0, "0", "0.00"),
        (4.5, "4.5", "4.50"),
        (0.00001234, "0.0000123", "0.0000123"),
        (-0.5, "-0.5", "-0.500"),
        (99.96, "100", "100"),
        (999.6, "1000", "1000"),
        (12345.6, "12346", "12346"),
        (4.2e9, "4200000000", "4200000000"),
        (1.5e-9, "1.50×10^-9", "1.50×10^-9"),
        (-3.4e38, "-3.40×10^38", "-3.40×10^38"),
        (math.inf, "inf", "inf"),
    ],
)
def test_figures(value: float, shown: str, padded: str) -> None:
    assert decimal(value) == shown
    assert decimal(value, zeros=True) == padded


def test_figures_with_thousands_apart() -> None:
    assert decimal(1234567.0, 10, commas=True) == "1,234,567"
    assert decimal(0.25, 10, commas=True) == "0.25"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (512, "512 B"), (999.7, "1 kB"), (13_000_000, "13 MB"), (2.5e9, "2.5 GB")],
)
def test_sizes(value: float, shown: str) -> None:
    assert size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (0.4, "0.4 s"),
        (0.96, "1 s"),
        (6, "6 s"),
        (89.6, "90 s"),
        (90, "1.5 min"),
        (5340, "89 min"),
        (43_200, "12 h"),
    ],
)
def test_durations(value: float, shown: str) -> None:
    assert duration(value) == shown


@given(READABLE, st.integers(1, 10), st.booleans())
def test_a_figure_is_the_value_rounded(value: float, significant: int, zeros: bool) -> None:
    shown = decimal(value, significant, zeros)
    assert re.fullmatch(r"\d+(\.\d+)?", shown)
    unit = Decimal(10) ** (Decimal(value).adjusted() - significant + 1)
    assert abs(Decimal(shown) - Decimal(value)) <= max(min(unit, 1), unit * (unit < 1)) / 2


@given(st.integers(0, 10**32))
def test_amounts_are_the_value_rounded_to_three_digits(value: int) -> None:
    for shown, unit in ((count(value), ""), (size(value), "B")):
        number, prefix = re.fullmatch(rf"([\d.]+) ?([{''.join(PREFIXES)}]?){unit}", shown).groups()
        told = float(number) * 1000.0 ** PREFIXES.index(prefix)
        assert told == pytest.approx(value, rel=0.00501)
        assert len(number.replace(".", "")) <= 3


@given(st.floats(allow_nan=False))
def test_no_text_of_a_number_has_an_exponent(value: float) -> None:
    size_of = {"a_speedup": value, "a_ms_p50": value, "a_ms_p90": value, "bytes": abs(value)}
    texts = [
        *(decimal(value, digits, zeros) for digits in (1, 3, 10) for zeros in (True, False)),
        *(
            formatting.speedup(size_of, TIMED),
            formatting.ratio(size_of, TIMED),
            formatting.milliseconds(size_of, TIMED),
        ),
        *(formatting.show(size_of, "bytes", write) for write in formatting.FORMATS.values()),
        formatting.show(size_of, "a_speedup", formatting.FORMATS["figure"]),
        *(function(abs(value)) for function in (count, size, duration)),
        *(function(abs(value)) for function in (formatting.plain, formatting.brief)),
    ]
    assert not [text for text in texts if EXPONENT.search(text)]


def exponents(node: ast.AST, scope: str) -> set[str]:
    """Return the functions below a node in which a number is formatted by `g` or `e`."""
    scope = node.name if isinstance(node, ast.FunctionDef) else scope
    found = set().union(*(exponents(child, scope) for child in ast.iter_child_nodes(node)))
    if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
        last = node.format_spec.values[-1]
        if isinstance(last, ast.Constant) and str(last.value)[-1:].lower() in ("e", "g"):
            found.add(scope)
    return found


def test_numbers_are_formatted_with_exponents_nowhere_else() -> None:
    """A p-value has no unit, and its exponent is what readers know."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), scope)
        for path in PACKAGE.rglob("*.py")
        for scope in exponents(ast.parse(path.read_text()), "")
    }
    assert found == {
        ("system/amounts.py", "decimal"),
        ("system/amounts.py", "_scaled"),
        ("report/formatting.py", "p_value"),
    }
