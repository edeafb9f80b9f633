"""What this machine has: CUDA devices and CPUs, as far as we are allowed to use them.

``nvidia-smi`` is asked, not a CUDA library: it needs no import, and starts no CUDA context in the
launcher. An existing ``CUDA_VISIBLE_DEVICES`` narrows the list, with its own spelling and in its own order.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dynamo_sdk.types.plan import GpuDevice, HostInventory, Inventory

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S = 20.0
_MIB = 1 << 20


def local_inventory(environment: Mapping[str, str] | None = None) -> Inventory:
    """This host, alone."""
    visible = (os.environ if environment is None else environment).get(VISIBLE_DEVICES)
    installed = () if visible is not None and not visible.strip() else installed_gpus()
    host = HostInventory(
        name=socket.gethostname(), num_cpus=usable_cpus(), gpus=visible_gpus(installed, visible)
    )
    return Inventory(hosts=(host,))


@cache
def installed_gpus() -> tuple[tuple[GpuDevice, str], ...]:
    """Every device with its UUID, by index; none where there is no working driver. Asked once."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(answer.stdout)


def parse_gpus(table: str) -> tuple[tuple[GpuDevice, str], ...]:
    """Read what ``QUERY`` prints; a line that cannot be read is no device."""
    found = []
    for line in table.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdigit():
            index, uuid, name, memory_mib = fields
            memory_bytes = int(memory_mib) * _MIB if memory_mib.isdigit() else 0  # "[N/A]" on shared memory
            found.append((GpuDevice(id=index, name=name, memory_bytes=memory_bytes), uuid))
    return tuple(found)


def visible_gpus(installed: tuple[tuple[GpuDevice, str], ...], visible: str | None) -> tuple[GpuDevice, ...]:
    """What ``CUDA_VISIBLE_DEVICES=visible`` leaves, by CUDA's own rules: entries are indices or UUIDs
    (or a beginning of one that fits one device), and the first that names nothing ends the list."""
    if visible is None:
        return tuple(gpu for gpu, _ in installed)
    chosen: list[GpuDevice] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            chosen.append(GpuDevice(id=entry, name="MIG slice"))
            continue
        matches = [
            gpu
            for gpu, uuid in installed
            if entry == gpu.id or (entry[:4] == "GPU-" and uuid.startswith(entry))
        ]
        if len(matches) != 1:
            break
        chosen.append(GpuDevice(id=entry, name=matches[0].name, memory_bytes=matches[0].memory_bytes))
    return tuple(chosen)


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may run on: its affinity, or a container's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota_us, period_us = quota_file.read_text().split()
        allowed = min(allowed, int(quota_us) // int(period_us))
    except (OSError, ValueError):  # no quota: "max", or not on Linux
        pass
    return max(1, allowed)
