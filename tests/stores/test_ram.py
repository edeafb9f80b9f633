"""Host memory: what does not fit is refused, and pinning follows the driver. No GPU here: a driver that
writes down what it is asked stands in."""

import ctypes

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.stores import RamStore, RamStoreConfig
from dynamo_sdk.stores.pinning import pin_with_driver
from dynamo_sdk.transfer.host_copy import address_of
from dynamo_sdk.transfer.host_pages import PAGE_BYTES, private_memory


class FakeDriver:
    def __init__(self, *, is_active=True, register_error=0):
        self.is_active, self.register_error = is_active, register_error
        self.registered, self.num_contexts, self.depth = {}, 0, 0

    def cuInit(self, flags):
        return 0

    def cuDevicePrimaryCtxGetState(self, device, flags, is_active):
        is_active._obj.value = self.is_active
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 7
        self.num_contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device):
        self.num_contexts -= 1

    def cuCtxPushCurrent_v2(self, context):
        assert isinstance(context, ctypes.c_void_p)
        self.depth += 1

    def cuCtxPopCurrent_v2(self, context):
        self.depth -= 1

    def cuMemHostRegister_v2(self, address, num_bytes, flags):
        assert self.depth == 1
        if not self.register_error:
            self.registered[address.value] = num_bytes.value
        return self.register_error

    def cuMemHostUnregister(self, address):
        assert self.depth == 1
        del self.registered[address.value]


def test_memory_is_pinned_and_given_back():
    driver, memory = FakeDriver(), private_memory(2 * PAGE_BYTES)
    assert address_of(memory) % PAGE_BYTES == 0
    unpin = pin_with_driver(driver, memory)
    assert driver.registered == {address_of(memory): 2 * PAGE_BYTES}
    assert (driver.num_contexts, driver.depth) == (1, 0)
    unpin()
    assert (driver.registered, driver.num_contexts, driver.depth) == ({}, 0, 0)


def test_no_context_is_made_for_pinning():
    driver = FakeDriver(is_active=False)
    assert pin_with_driver(driver, private_memory(PAGE_BYTES)) is None
    assert driver.num_contexts == 0


def test_memory_that_cannot_be_pinned_is_used_unpinned(caplog):
    driver = FakeDriver(register_error=2)
    assert pin_with_driver(driver, private_memory(PAGE_BYTES)) is None
    assert (driver.num_contexts, driver.depth) == (0, 0)
    assert "CUDA error 2" in caplog.text


@pytest.mark.anyio
async def test_more_memory_than_there_is_is_refused():
    store = RamStore(RamStoreConfig(block_bytes=4096, capacity_bytes=1 << 44))
    with pytest.raises(ConfigError, match=f"a RAM store of {1 << 44} bytes does not fit"):
        await store.start()
    await store.close()


def test_a_capacity_below_a_block_is_refused():
    with pytest.raises(ValueError, match="a capacity of 100 bytes holds no block of 4096 bytes"):
        RamStoreConfig(block_bytes=4096, capacity_bytes=100)
