"""Host memory pinned for CUDA, where this process uses CUDA."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

from dynamo_sdk.transfer.host_copy import address_of

logger = logging.getLogger(__name__)


def pin_for_cuda(memory: memoryview) -> Callable[[], None] | None:
    """Register ``memory`` with the CUDA driver when this process already has a CUDA context, so that copies
    to and from the device need no detour; no context is created. Returns what undoes it, or None."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return pin_with_driver(cuda, memory)


def pin_with_driver(cuda: ctypes.CDLL, memory: memoryview) -> Callable[[], None] | None:
    """``cuda``: the driver's library. Device 0's primary context decides whether CUDA is in use here."""
    flags, is_active, context = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) or cuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(is_active)):
        return None
    if not is_active.value or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
        return None
    address = ctypes.c_void_p(address_of(memory))
    portable = 1  # CU_MEMHOSTREGISTER_PORTABLE: pinned for every context
    cuda.cuCtxPushCurrent_v2(context)
    code = cuda.cuMemHostRegister_v2(address, ctypes.c_size_t(len(memory)), portable)
    cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    if code:
        cuda.cuDevicePrimaryCtxRelease_v2(0)
        logger.warning("%d bytes of KV memory stay unpinned: CUDA error %d", len(memory), code)
        return None

    def unpin() -> None:
        cuda.cuCtxPushCurrent_v2(context)
        cuda.cuMemHostUnregister(address)
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        cuda.cuDevicePrimaryCtxRelease_v2(0)

    return unpin
