from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.stats.bootstrap import T_975
from compress.stats.levels import student
from compress.stats.ratios import Ratio, minimum_effect_p, speedup
from compress.stats.spread import spread


def processes(seed: int, noise: float = 0.05, between: float = 0.0, count: int = 5, rounds=40):
    generator = np.random.default_rng(seed)
    shifts = generator.normal(0, between, count)
    return [np.exp(shift + generator.normal(0, noise, rounds)) for shift in shifts]


def ones(count: int = 5, rounds: int = 40) -> list[np.ndarray]:
    return [np.ones(rounds)] * count


def test_spread_is_that_of_scipy():
    seconds = np.random.default_rng(0).lognormal(size=999)
    found = spread(seconds)
    assert found.p50_ms == pytest.approx(1e3 * np.median(seconds))
    assert found.p90_ms == pytest.approx(1e3 * scipy.stats.scoreatpercentile(seconds, 90))
    assert found.iqr_ms == pytest.approx(1e3 * scipy.stats.iqr(seconds))


def test_a_file_against_its_own_times_is_exactly_one():
    same = processes(0)
    found = speedup(same, same)
    assert (found.value, found.low, found.high, found.error) == (1, 1, 1, 0)
    assert minimum_effect_p(found, 0.0) == 1


def test_an_a_a_pair_contains_one():
    found = speedup(processes(1), processes(2))
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.1


def test_rounds_are_paired_so_that_shared_noise_cancels():
    shared = processes(3, noise=1.0)
    found = speedup(shared, [seconds / 2 for seconds in shared])
    assert found.value == pytest.approx(2)
    assert found.high - found.low < 1e-12


def test_processes_that_differ_widen_the_interval():
    alike, apart = (speedup(ones(), processes(4, between=between)) for between in (0, 0.1))
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_every_process_weighs_the_same_however_many_rounds_it_had():
    rounds = (3, 300, 3)
    times = [np.full(n, t) for n, t in zip(rounds, (1 / 2, 1 / 3, 1 / 2), strict=True)]
    found = speedup([np.ones(n) for n in rounds], times)
    assert found.value == pytest.approx(2)


def test_between_processes_the_interval_is_students_for_their_means():
    """Where rounds are exact, the median of many processes' shifts is what varies."""
    shifts = np.random.default_rng(7).normal(0, 0.02, 31)
    found = speedup(
        [np.ones(5)] * 31, [np.exp(-np.full(5, shift)) for shift in shifts], resamples=2000
    )
    medians = scipy.stats.bootstrap(
        (shifts,), np.median, n_resamples=4000, rng=np.random.default_rng(1)
    ).standard_error
    assert found.value == pytest.approx(np.exp(np.median(shifts)))
    assert found.error == pytest.approx(medians * np.sqrt(31 / 30), rel=0.1)
    half = student(30) * found.error
    assert np.log(found.high / found.value) == pytest.approx(half)
    assert np.log(found.value / found.low) == pytest.approx(half)


def test_rounds_that_alone_vary_are_not_counted_twice():
    """Processes that are alike leave the bootstrap of the median over all rounds."""
    wide = []
    for seed in range(20):
        logs = np.log(np.concatenate(processes(seed, count=8, rounds=100)))
        plain = scipy.stats.bootstrap(
            (logs,), np.median, n_resamples=500, rng=np.random.default_rng(seed)
        ).standard_error
        wide.append(speedup(ones(8, 100), processes(seed, count=8, rounds=100)).error / plain)
    assert 0.9 < np.median(wide) < 1.3


def test_the_table_of_quantiles_is_students():
    for freedom, value in enumerate(T_975, 1):
        assert student(freedom) <= value < student(freedom) + 0.011
    assert student(10_000) < T_975[-1]


@pytest.mark.parametrize(("noise", "between"), [(0.05, 0.0), (0.02, 0.02), (0.005, 0.01)])
def test_the_interval_covers_the_truth_at_least_about_as_often_as_it_says(noise, between):
    hits = 0
    for seed in range(100):
        found = speedup(ones(rounds=15), processes(seed, noise, between, rounds=15), seed, 200)
        hits += found.low <= 1 <= found.high
    assert hits >= 91  # of a true 95 %, fewer come about once in 25 runs; the seeds are fixed


def test_one_process_says_nothing_about_others():
    found = speedup(ones(1), processes(5, count=1))
    assert (found.low, found.high) == (0, np.inf)
    assert minimum_effect_p(found, 0.0) == 1


def test_the_seed_decides():
    one, again = (speedup(processes(6), processes(7), seed=3) for _ in range(2))
    assert one == again
    few = [speedup(processes(6), processes(7), seed, resamples=20) for seed in (3, 4)]
    assert few[0] != few[1]


def test_no_common_round_is_an_error():
    with pytest.raises(ValueError, match="no round"):
        speedup([np.array([])], [np.array([])])


def test_the_quantile_is_the_tables():
    assert student(4) == pytest.approx(2.776, abs=1e-3)


def test_p_is_students_beyond_the_margin():
    ratio = Ratio(1.05, 0, 0, error=0.01, processes=5)
    assert minimum_effect_p(ratio, 0.0) == pytest.approx(
        2 * scipy.stats.t.sf(np.log(1.05) / 0.01, 4)
    )
    nearer, farther = ((np.log(1.05) + sign * np.log(1.02)) / 0.01 for sign in (-1, 1))
    expected = scipy.stats.t.sf(nearer, 4) + scipy.stats.t.sf(farther, 4)
    assert minimum_effect_p(ratio, 0.02) == pytest.approx(expected)
    assert minimum_effect_p(ratio, 0.0501) == 1
    slower = Ratio(1 / 1.05, 0, 0, error=0.01, processes=5)
    assert minimum_effect_p(slower, 0.02) == pytest.approx(minimum_effect_p(ratio, 0.02))
    assert minimum_effect_p(Ratio(2, 2, 2, 0, 5), 0.02) == 0


@given(
    st.floats(0.5, 2), st.floats(0, 0.2), st.floats(1e-3, 0.2), st.integers(2, 40), st.floats(0, 1)
)
def test_p_is_the_largest_chance_of_any_truth_within_the_margin(
    value: float, margin: float, error: float, processes: int, where: float
) -> None:
    ratio = Ratio(value, 0, 0, error, processes)
    p, size, spread = minimum_effect_p(ratio, margin), abs(np.log(value)), error
    law = scipy.stats.t(processes - 1)

    def chance(truth: float) -> float:
        """Of an estimate at least as far from 0."""
        return float(law.sf((size - truth) / spread) + law.cdf((-size - truth) / spread))

    within = np.log1p(margin) * (2 * where - 1)
    assert p >= chance(within) - 1e-12
    if size > np.log1p(margin):
        assert p == pytest.approx(chance(np.log1p(margin)), rel=1e-6, abs=1e-12)
    if p <= 0.05:
        assert size >= law.isf(0.025) * error * (1 - 1e-9)  # the 95 % interval leaves out 1


times = st.lists(st.floats(1e-5, 10), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(times, times, st.floats(0.01, 100), st.integers(0, 9))
def test_scaling_a_candidates_times_divides_its_speedup(one, two, factor, seed):
    length = min(len(one), len(two))
    baseline = [np.array(one[:length])] * 2
    candidate = [np.array(two[:length]), np.array(two[:length][::-1])]
    plain = speedup(baseline, candidate, seed, resamples=50)
    scaled = speedup(baseline, [factor * c for c in candidate], seed, resamples=50)
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name) / factor)
    assert plain.low <= plain.value <= plain.high
    inverse = speedup(candidate, baseline, seed, resamples=50)
    assert inverse.error == pytest.approx(plain.error)
