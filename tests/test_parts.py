"""The rules of settings: what a field takes, and the sentence that refuses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from compress.errors import IllegalChain
from compress.parts import (
    Configured,
    a_name,
    flag,
    kept_fraction,
    kept_fractions,
    one_of,
    positive,
    positive_or_zero,
    whole_number,
)


@pytest.mark.parametrize(
    ("rule", "taken", "refused", "sentence"),
    [
        (whole_number(), [1, 7], [0, 1.0, True, "1", None], "must be a whole number of at least 1"),
        (whole_number(least=0), [0], [-1], "must be a whole number of at least 0"),
        (positive(), [1, 0.5], [0, -1, True, float("nan"), float("inf"), "1"], "must be positive"),
        (positive_or_zero(), [0, 0.5], [-0.1, False, None], "must be >= 0"),
        (kept_fraction(), [1, 0.01], [0, 1.1, True], "is the fraction that is kept, above 0"),
        (one_of("a", "b"), ["a", "b"], ["c", 1, ["a"], None], "must be one of a, b"),
        (flag(), [True, False], [1, None], "is True or False"),
        (a_name(), ["x"], [3, None], "is a name"),
    ],
)
def test_rules(
    rule: Mapping[str, Any], taken: list[Any], refused: list[Any], sentence: str
) -> None:
    @dataclass(frozen=True, repr=False)
    class Step(Configured):
        value: Any = field(metadata=rule)

    for value in taken:
        assert Step(value).value == value
    for value in refused:
        with pytest.raises(IllegalChain, match=f"^step: value {sentence}.*, not "):
            Step(value)


def test_none_is_fine_where_it_is_the_default_and_lists_become_tuples() -> None:
    @dataclass(frozen=True, repr=False)
    class Step(Configured):
        macs: float | None = field(default=None, metadata=kept_fraction())
        width: float | None = field(default=None, metadata=kept_fraction())
        names: tuple[str, ...] = ()

    step = Step(macs=0.5, names=["a", "b"])  # type: ignore[arg-type]
    assert step.names == ("a", "b")
    assert step.width is None
    assert kept_fractions(step) == {"macs": 0.5}
    assert hash(step) == hash(Step(0.5, None, ("a", "b")))
