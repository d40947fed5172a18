"""What a run says of where it takes place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.benchmark.plan.provenance import environment


def test_the_environment_is_json_and_says_what_figures_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Big GPU")
    monkeypatch.setattr("compress.system.environment.gpu", lambda: ("", ""))
    found = json.loads(json.dumps(environment(2, "cpu", "bfloat16", (0, 3))))
    assert (found["threads"], found["device"], found["precision"]) == (2, "cpu", "bfloat16")
    assert (found["seeds"], found["gpu"], found["driver"]) == ([0, 3], "Big GPU", "")
    known = {"cpu", "cpu_flags", "cores", "logical_cores", "physical_cores", "cpu_quota", "system"}
    assert known | {"governor", "memory_bytes", "python", "versions", "git"} <= found.keys()
    # The folder of our own checkout is no part of what is written down.
    assert str(Path(__file__).resolve().parents[2]) not in json.dumps(found)
