"""A block with all that proves what it is, in one piece: for media that anybody may write to.

::

    magic and version | bytes of the block | length of the key | key | checksum | the block

Everything before the block is compared with what it must be, the checksum (``checksum.py``) covers key and
block: a piece that is cut off, damaged, of another key or of another size is not accepted.
"""

from __future__ import annotations

from struct import Struct

import numpy as np

from dynamo_sdk.interfaces import CacheKey

from .checksum import CHECKSUM_BYTES, block_checksum
from .medium import MAX_KEY_BYTES

_MAGIC = b"dynamo-sdk kv 1\n"
_HEAD = Struct(f"<16sQB{MAX_KEY_BYTES}s{CHECKSUM_BYTES}s")
HEAD_BYTES = _HEAD.size


def frame_block(key: CacheKey, block: memoryview) -> bytes:
    """A copy of ``block`` (flat bytes) behind its head."""
    head = _HEAD.pack(_MAGIC, len(block), len(key), key, block_checksum(key, block))
    return b"".join((head, block))


def unframe_block(key: CacheKey, framed: memoryview, into: memoryview) -> str | None:
    """Fill ``into`` with the block of ``key``. Returns what is wrong with ``framed``, or None; when something
    is, ``into`` holds nothing of worth."""
    if len(framed) != HEAD_BYTES + len(into):
        return f"{len(framed)} bytes where {HEAD_BYTES + len(into)} should be"
    head, block = framed[:HEAD_BYTES], framed[HEAD_BYTES:]
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(block, np.uint8))
    # Of the copy: what was checked is what is used.
    if bytes(head) != _HEAD.pack(_MAGIC, len(into), len(key), key, block_checksum(key, into)):
        return "the bytes are not what was put under this key"
    return None
