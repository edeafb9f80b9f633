"""Whether pages are large is the kernel's choice; what is in them, and that they are found, is not."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynamo_sdk.transfer import host_pages
from dynamo_sdk.transfer.host_copy import address_of
from dynamo_sdk.transfer.host_pages import (
    LARGE_PAGE_BYTES,
    PAGE_BYTES,
    SharedMemory,
    map_shared,
    private_memory,
)

SIZES = [1, PAGE_BYTES + 1, LARGE_PAGE_BYTES, 3 * LARGE_PAGE_BYTES + PAGE_BYTES + 1]


@pytest.fixture(params=["as the kernel likes", "refused", "too much"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "refused":
        monkeypatch.setattr(host_pages, "_MADV_COLLAPSE", -1)
        monkeypatch.setattr(host_pages, "_MADV_POPULATE_WRITE", -1)
    if request.param == "too much":
        monkeypatch.setattr(host_pages.psutil, "virtual_memory", lambda: SimpleNamespace(available=2))


def num_mappings(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"/memfd:{name} ")


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("num_bytes", SIZES)
def test_others_see_what_is_written(num_bytes: int) -> None:
    shared = SharedMemory("test-see", num_bytes)
    assert bytes(shared.memory) == bytes(num_bytes)
    region = shared.region
    assert region is not None
    assert region.size_bytes == num_bytes
    theirs = map_shared(region.fd, num_bytes, is_writable=False)
    shared.memory[-1] = 7
    assert (theirs[-1], len(theirs), theirs.readonly) == (7, num_bytes, True)
    shared.close()


@pytest.mark.parametrize("num_bytes", SIZES[2:])
def test_large_pages_fit_into_every_mapping(num_bytes: int) -> None:
    shared = SharedMemory("test-fit", num_bytes)
    assert shared.region is not None
    mappings = [shared.memory, *(map_shared(shared.region.fd, num_bytes) for _ in range(3))]
    assert [address_of(memory) % LARGE_PAGE_BYTES for memory in mappings] == [0] * 4
    shared.close()


@pytest.mark.parametrize("num_bytes", SIZES)
def test_the_last_view_unmaps_and_nothing_else_does(num_bytes: int) -> None:
    shared = SharedMemory("test-last", num_bytes)
    view = shared.memory[:1]
    shared.close()
    shared.close()
    assert shared.region is None
    del shared
    gc.collect()
    assert num_mappings("test-last") == 1
    view[0] = 3
    del view
    gc.collect()
    assert num_mappings("test-last") == 0


def test_nobody_shrinks_it() -> None:
    shared = SharedMemory("test-seal", LARGE_PAGE_BYTES)
    assert shared.region is not None
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(shared.region.fd, 0)
    shared.close()


def test_what_cannot_be_mapped_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "blocks"
    file.write_bytes(bytes(LARGE_PAGE_BYTES))
    given_back: list[tuple[int, int]] = []
    munmap = host_pages._libc.munmap

    def spy(address: int, num_bytes: int) -> int:
        given_back.append((address, num_bytes))
        return munmap(address, num_bytes)

    monkeypatch.setattr(host_pages._libc, "munmap", spy)
    with file.open("rb") as opened, pytest.raises(OSError, match="cannot map"):
        map_shared(opened.fileno(), LARGE_PAGE_BYTES, is_writable=True)
    assert [num_bytes for _, num_bytes in given_back] == [2 * LARGE_PAGE_BYTES]


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("is_populated", [True, False])
@pytest.mark.parametrize("num_bytes", SIZES)
def test_private_memory_is_zeroed_and_aligned(num_bytes: int, is_populated: bool) -> None:
    memory = private_memory(num_bytes, is_populated=is_populated)
    assert address_of(memory) % PAGE_BYTES == 0
    assert bytes(memory) == bytes(num_bytes)
    memory[-1] = 1


@pytest.mark.parametrize("advice", ["taken", "refused"])
@pytest.mark.parametrize(
    ("make", "is_there"),
    [
        (lambda: private_memory(32 << 20, is_populated=True), True),
        (lambda: private_memory(32 << 20), False),
        (lambda: SharedMemory("test-there", (32 << 20) + PAGE_BYTES).memory, True),
        (lambda: SharedMemory("test-there", 32 << 20, is_populated=False).memory, False),
    ],
    ids=["private", "private, at first use", "shared", "shared, at first use"],
)
def test_populated_memory_is_there(
    make, is_there: bool, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resident bytes of the process grow by it, whatever the size of its pages."""
    if advice == "refused":
        monkeypatch.setattr(host_pages, "_advise", lambda memory, advice: False)
    before = resident_bytes()
    memory = make()
    assert (resident_bytes() - before > 24 << 20) == is_there
    assert len(memory) >= 32 << 20


def test_what_the_machine_has_not_comes_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_pages.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 << 20))
    before = resident_bytes()
    shared = SharedMemory("test-less", 32 << 20)
    assert resident_bytes() - before < 24 << 20
    assert bytes(shared.memory[-8:]) == bytes(8)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
