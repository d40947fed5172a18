"""Every clock here is made up; nothing depends on how busy the machine is."""

from __future__ import annotations

import pytest

from compress.timing.interleave import KEPT_CALLS, MAX_CALLS, Candidate, Plan, interleave


class Machine:
    """A clock that only the candidates' calls move, and a list of who was called with what."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float, **options) -> Candidate:
        def call(index: int) -> str:
            self.calls.append((name, index))
            self.now += seconds
            return name

        return Candidate(call, **options)


def blocks(machine: Machine) -> list[str]:
    """Return the order of candidates, one entry for each run of calls."""
    order: list[str] = []
    for name, _ in machine.calls:
        if not order or order[-1] != name:
            order.append(name)
    return order


def test_blocks_last_as_long_as_asked_and_seconds_are_exact():
    machine = Machine()
    candidates = {"a": machine.candidate("a", 0.001), "b": machine.candidate("b", 0.02)}
    found = interleave(candidates, Plan(0, 4, 0.005), 0, machine.clock)
    assert found["a"].block_calls == 5
    assert found["b"].block_calls == 1
    assert found["a"].medians == pytest.approx([0.001] * 4)
    assert [len(block) for block in found["a"].calls] == [5] * 4
    assert found["b"].medians == pytest.approx([0.02] * 4)


def test_it_goes_on_until_the_budget_is_spent():
    machine = Machine()
    found = interleave(
        {"a": machine.candidate("a", 0.25)}, Plan(10, 2, 0.005, warm_calls=2), 0, machine.clock
    )
    # Two warm calls take half a second; a round is one call.
    assert len(found["a"].medians) == 38


def test_every_round_has_every_candidate_once_in_an_order_that_varies():
    machine = Machine()
    names = "abcd"
    candidates = {name: machine.candidate(name, 0.02) for name in names}
    interleave(candidates, Plan(0, 12, 0.001, warm_calls=1), 0, machine.clock)
    calls = [name for name, _ in machine.calls[len(names) :]][::2]
    rounds = [tuple(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert len(set(rounds)) > 4


def test_the_order_is_that_of_the_seed():
    orders = []
    for seed in (1, 1, 2):
        machine = Machine()
        candidates = {name: machine.candidate(name, 0.01) for name in "abcd"}
        interleave(candidates, Plan(0, 8), seed, machine.clock)
        orders.append(blocks(machine))
    assert orders[0] == orders[1] != orders[2]


def test_inputs_rotate_and_are_the_same_for_all_in_a_round():
    machine = Machine()
    candidates = {name: machine.candidate(name, 0.02) for name in "ab"}
    interleave(candidates, Plan(0, 5, 0.001, warm_calls=1), 0, machine.clock)
    for name in "ab":
        indices = [index for who, index in machine.calls if who == name]
        # One call warms, then in each turn one call that does not count, with the next input.
        assert indices == [0, 1, 0, 2, 1, 3, 2, 4, 3, 5, 4]


def test_raw_seconds_are_bounded():
    machine = Machine()
    found = interleave({"a": machine.candidate("a", 1e-7)}, Plan(0, 1, 1.0), 0, machine.clock)
    assert found["a"].block_calls == MAX_CALLS
    assert len(found["a"].calls[0]) <= KEPT_CALLS


def test_wrong_outputs_give_an_error_and_the_others_go_on():
    machine = Machine()
    candidates = {
        "good": machine.candidate("good", 0.01),
        "wrong": machine.candidate("wrong", 0.01, check=lambda index, outputs: "not computed"),
        "late": machine.candidate(
            "late", 0.01, check=lambda index, outputs: "off" if index == 3 else ""
        ),
    }
    found = interleave(candidates, Plan(0, 6), 0, machine.clock)
    assert found["wrong"].error == "not computed"
    assert found["wrong"].medians == []
    assert found["late"].error == "off"
    assert found["good"].error == ""
    assert len(found["good"].medians) == 6


def test_a_candidate_that_raises_gets_its_error():
    def fail(index: int) -> None:
        raise RuntimeError("no such kernel")

    found = interleave({"a": Candidate(fail)}, Plan(0, 3), 0, Machine().clock)
    assert found["a"].error == "RuntimeError: no such kernel"


def test_it_stops_when_nobody_waits():
    machine = Machine()

    def gone() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        interleave({"a": machine.candidate("a", 1)}, Plan(9), 0, machine.clock, gone)


@pytest.mark.parametrize(("short", "warmed"), [(0.04, 1), (0.3, 0)])
def test_caches_are_brought_back_for_all_candidates_or_for_none(short, warmed):
    machine = Machine()
    candidates = {
        "long": machine.candidate("long", 0.5),
        "short": machine.candidate("short", short),
    }
    interleave(candidates, Plan(0, 4, 0.005, warm_calls=1), 0, machine.clock)
    for name in candidates:
        assert [who for who, _ in machine.calls].count(name) == 1 + 4 * (1 + warmed)


@pytest.mark.parametrize(
    ("seconds", "uncounted"),
    [
        (1e-5, 30),
        (0.00025, 30),
        (0.0005, 16),
        (0.0009, 9),
        (0.0015, 6),
        (0.002, 4),
        (0.0041, 2),
        (0.1, 1),
    ],
)
def test_a_turn_begins_with_calls_that_do_not_count(seconds, uncounted):
    machine = Machine()
    plan = Plan(0, 3, block_seconds=seconds / 2, warm_calls=1)
    found = interleave({"a": machine.candidate("a", seconds)}, plan, 0, machine.clock)
    assert len(machine.calls) == 1 + 3 * (uncounted + 1)
    assert [len(block) for block in found["a"].calls] == [1] * 3


def test_only_the_first_calls_of_a_turn_may_be_slow():
    machine = Machine()
    last = [""]

    def candidate(name: str) -> Candidate:
        since = [0]

        def call(index: int) -> None:
            since[0] = since[0] + 1 if last[0] == name else 0
            last[0] = name
            machine.now += 0.0005 + max(0.0, 0.00034 - 0.000034 * since[0])

        return Candidate(call)

    found = interleave({n: candidate(n) for n in "ab"}, Plan(0, 5), 0, machine.clock)
    assert found["a"].medians == pytest.approx([0.0005] * 5)


def test_a_device_brings_its_own_stopwatch():
    machine = Machine()
    honest = machine.candidate("a", 0.01)
    timed = Candidate(honest.call, stopwatch=lambda call, index: (0.002, call(index)))
    found = interleave({"a": timed}, Plan(0, 3, 0.005), 0, machine.clock)
    assert found["a"].medians == [0.002] * 3
    assert found["a"].block_calls == 3
