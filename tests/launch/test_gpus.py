from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.launch import gpus
from dynamo_sdk.launch.gpus import local_inventory, parse_gpus, usable_cpus, visible_gpus

TABLE = """\
0, GPU-5ac0e1f2-0000-0000-0000-000000000001, NVIDIA H200, 143771
1, GPU-5ac0e1f2-0000-0000-0000-000000000002, NVIDIA H200, 143771
2, GPU-77b00000-0000-0000-0000-000000000003, NVIDIA GB10, [N/A]
"""
INSTALLED = parse_gpus(TABLE)


def test_the_table_of_nvidia_smi_is_read() -> None:
    assert [(gpu.id, gpu.name, gpu.memory_bytes) for gpu, _ in INSTALLED] == [
        ("0", "NVIDIA H200", 143771 << 20),
        ("1", "NVIDIA H200", 143771 << 20),
        ("2", "NVIDIA GB10", 0),
    ]


@given(st.text())
def test_no_table_is_too_strange(table: str) -> None:
    parse_gpus(table)


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("1", ["1"]),
        ("2,0", ["2", "0"]),
        ("0,9,1", ["0"]),  # the first that names nothing ends the list
        ("NoDevFiles", []),
        ("GPU-77b", ["GPU-77b"]),
        ("GPU-5ac", []),  # fits two devices
        ("MIG-GPU-1/2/3", ["MIG-GPU-1/2/3"]),
    ],
)
def test_an_existing_choice_is_respected(visible: str | None, ids: list[str]) -> None:
    assert [gpu.id for gpu in visible_gpus(INSTALLED, visible)] == ids


def test_an_inventory_of_nothing_does_not_ask_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    gpus.installed_gpus.cache_clear()
    (host,) = local_inventory({"CUDA_VISIBLE_DEVICES": ""}).hosts
    assert host.gpus == ()
    assert host.num_cpus >= 1


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY", ("no-such-nvidia-smi",))
    gpus.installed_gpus.cache_clear()
    assert local_inventory({}).hosts[0].gpus == ()
    gpus.installed_gpus.cache_clear()


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("?", None)]
)
def test_a_containers_quota_limits_the_cpus(tmp_path: Path, quota: str, expected: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cpus(file) == (expected or usable_cpus(tmp_path / "none"))
