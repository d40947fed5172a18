"""The fewest products in float for which a bound holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compress.int8.bound import within
from compress.int8.lower import Lowered

NAMES = [f"conv{number}" for number in range(20)]


@given(st.lists(st.floats(0, 3), min_size=20, max_size=20), st.floats(0.1, 5))
def test_the_bound_holds_with_as_few_as_possible(shares, most):
    """Each product costs its share as int8: the drop falls with every one that is float."""
    trials = []

    def lowered(floats: frozenset[str]) -> Lowered:
        trials.append(len(floats))
        return Lowered(",".join(sorted(floats)).encode())

    def drop(made: Lowered) -> float:
        floats = set(made.content.decode().split(","))
        return sum(share for name, share in zip(NAMES, shares, strict=True) if name not in floats)

    found = within(NAMES, lowered, drop, most)
    sums = [sum(shares[count:]) for count in range(21)]
    fewest = next(count for count, value in enumerate(sums) if value <= most + 1e-9)
    assert abs(len(found.floats) - fewest) <= (abs(sums[fewest] - most) < 1e-6)
    assert found.floats == frozenset(NAMES[: len(found.floats)])
    assert found.first == drop(Lowered(b""))
    assert len(trials) == len(set(trials)) <= 12


def test_where_it_cannot_hold_the_least_drop_is_kept():
    drops = {0: 5.0, 1: 4.0, 2: 2.0, 3: 3.0}
    found = within(
        NAMES[:3],
        lambda floats: Lowered(str(len(floats)).encode()),
        lambda made: drops[int(made.content)],
        0.5,
    )
    assert (len(found.floats), found.drop, found.first) == (2, 2.0, 5.0)
