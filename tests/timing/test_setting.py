from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UserError
from compress.timing.setting import DEFAULT, Setting, parse_setting


@given(st.integers(0, 9999), st.integers(1, 999_999))
def test_a_name_is_its_setting(threads, batch):
    setting = Setting(threads, batch)
    assert parse_setting(setting.name) == setting


def test_the_default_trio():
    assert [parse_setting(name) for name in DEFAULT] == [
        Setting(0, 1),
        Setting(1, 1),
        Setting(0, 32),
    ]
    assert [parse_setting(name).words for name in DEFAULT] == [
        "batch 1, all threads",
        "batch 1, 1 thread",
        "batch 32, all threads",
    ]


@pytest.mark.parametrize("name", ["", "gpu", "cpu0", "cpu_batch0", "cpu_batch1", "cpu01", "cpu 1"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=r"no latency setting: they are named cpu\[THREADS\]"):
        parse_setting(name)
