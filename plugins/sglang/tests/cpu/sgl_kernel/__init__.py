"""Instead of SGLang's CUDA kernels: names that can be imported and, but for one operator, not be called."""

import numpy as np
import torch

__version__ = "0.4.10"

M32 = np.uint64(0xFFFFFFFF)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_, **__):
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU")

    return kernel


def murmur_hash32(seeds, positions, columns):
    """MurmurHash3 (x86, 32 bits) of a seed's two halves, a position and a column, from which seeded sampling
    draws its chances: [rows], [rows], [columns] -> [rows, columns]."""
    rows = [array.numpy().astype(np.uint64)[:, None] for array in (seeds, positions)]
    low, high = rows[0] & M32, rows[0] >> np.uint64(32)
    state = np.zeros((len(low), len(columns)), np.uint64)
    for block in (low, high, rows[1] & M32, columns.numpy().astype(np.uint64)[None, :]):
        mixed = _rotated(block * np.uint64(0xCC9E2D51) & M32, 15) * np.uint64(0x1B873593) & M32
        state = _rotated(state ^ mixed, 13) * np.uint64(5) + np.uint64(0xE6546B64) & M32
    state ^= np.uint64(16)  # bytes
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        state ^= state >> np.uint64(shift)
        state = state * np.uint64(factor) & M32
    return torch.from_numpy(state.astype(np.uint32))


def _rotated(numbers, count):
    return (numbers << np.uint64(count) | numbers >> np.uint64(32 - count)) & M32


torch.library.define(
    "sgl_kernel::murmur_hash32_cpu", "(Tensor seeds, Tensor positions, Tensor columns) -> Tensor"
)
torch.library.impl("sgl_kernel::murmur_hash32_cpu", "CPU", murmur_hash32)
