from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.timing.statistics import speedup, spread


def processes(seed: int, factor: float = 1.0, noise: float = 0.05, rounds: int = 40):
    generator = np.random.default_rng(seed)
    return [factor * np.exp(generator.normal(0, noise, rounds)) for _ in range(3)]


def test_spread_is_that_of_scipy():
    seconds = np.random.default_rng(0).lognormal(size=999)
    found = spread(seconds)
    assert found.p50_ms == pytest.approx(1e3 * np.median(seconds))
    assert found.p90_ms == pytest.approx(1e3 * scipy.stats.scoreatpercentile(seconds, 90))
    assert found.iqr_ms == pytest.approx(1e3 * scipy.stats.iqr(seconds))


def test_a_file_against_its_own_times_is_exactly_one():
    same = processes(0)
    found = speedup(same, same)
    assert (found.value, found.low, found.high) == (1, 1, 1)


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
    baseline = [np.ones(200)] * 3
    alike = speedup(baseline, processes(4, rounds=200))
    apart = speedup(
        baseline, [s * f for s, f in zip(processes(4, rounds=200), (0.9, 1.0, 1.1), strict=True)]
    )
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


def test_with_one_process_the_interval_is_scipys_bootstrap_of_the_median():
    ratios = np.random.default_rng(5).lognormal(0, 0.1, 100)
    found = speedup([ratios], [np.ones(100)])
    oracle = scipy.stats.bootstrap(
        (ratios,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.low == pytest.approx(oracle.low, rel=0.01)
    assert found.high == pytest.approx(oracle.high, rel=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        found = speedup(processes(seed), processes(1000 + seed), seed=seed, resamples=200)
        hits += found.low <= 1 <= found.high
    assert hits >= 52


def test_the_seed_decides():
    one, again = (speedup(processes(6), processes(7), seed=3) for _ in range(2))
    assert one == again
    few = [speedup(processes(6), processes(7), seed, resamples=20) for seed in (3, 4)]
    assert few[0] != few[1]


def test_no_common_round_is_an_error():
    with pytest.raises(ValueError, match="no round"):
        speedup([np.array([])], [np.array([])])


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
