"""What the figures depend on, read from made-up systems."""

from __future__ import annotations

import json
import os
import platform

import pytest

from compress.system import environment as environment_module
from compress.system.environment import (
    cpu_info,
    cpu_quota,
    cpu_threads,
    environment,
    governor,
    gpu,
    machine,
)


def test_the_processor_is_read(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor : 0\nmodel name\t: Fast 9\n"
        "flags\t\t: fpu avx2 fma avx512_vnni amx_tile amx_int8 avx512_bf16\n"
    )
    assert cpu_info(path) == (
        "Fast 9",
        ("fma", "avx2", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_int8"),
    )
    path.write_text("processor : 0\nFeatures\t: fp asimd asimddp i8mm bf16\n")
    assert cpu_info(path)[1] == ("asimd", "asimddp", "i8mm", "bf16")
    assert cpu_info(tmp_path / "none")[1] == ()


@pytest.mark.parametrize(
    ("text", "quota", "cores"),
    [
        ("50000 100000", 0.5, 1),
        ("100000000 100000", 1000.0, None),
        ("max 100000", None, None),
        ("rubbish", None, None),
    ],
)
def test_a_containers_quota_bounds_the_threads(tmp_path, text, quota, cores):
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert cpu_quota(path) == quota
    assert cpu_threads(path) == (cores or cpu_threads(tmp_path / "none"))


def test_the_governor_is_read_where_there_is_one(tmp_path):
    folder = tmp_path / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    assert governor(tmp_path) == "powersave"
    assert governor(tmp_path / "none") == ""


def smi(folder, text, code=0):
    """Put an `nvidia-smi` that says this into a folder."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {code}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("Big GPU, 580.1\n", 0, ("Big GPU", "580.1")),
        ("Big GPU, 580.1\nBig GPU, 580.1\nOld, 580.1\n", 0, ("2 x Big GPU, Old", "580.1")),
        ("Failed to initialize NVML, or such\n", 9, ("", "")),
        ("No devices were found\n", 0, ("", "")),
    ],
)
def test_the_gpu_is_what_nvidias_tool_says(monkeypatch, tmp_path, text, code, expected):
    smi(tmp_path, text, code)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu() == expected


def test_without_the_tool_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu() == ("", "")


def test_the_environment_is_json():
    assert json.loads(json.dumps(environment(2)))["threads"] == 2


def test_the_machine_is_json_and_names_neither_host_nor_user(monkeypatch):
    monkeypatch.setattr(environment_module, "gpu", lambda: ("Big GPU", "580.1"))
    found = json.loads(json.dumps(machine()))
    assert (found["gpu"], found["driver"]) == ("Big GPU", "580.1")
    assert found.keys() == {
        *("logical_cores", "physical_cores", "cpu_quota", "governor", "memory_bytes"),
        *("gpu", "driver", "python", "system"),
    }
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= (found["physical_cores"] or 1) <= found["logical_cores"]
    assert platform.node() not in found["system"].split()
