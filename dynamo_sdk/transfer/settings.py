"""How blocks are to travel."""

from __future__ import annotations

from typing import Literal

import msgspec

BackEnd = Literal["shm", "unix", "tcp", "nixl"]
"""What moved the blocks: mapped memory, a stream through that kind of socket, or NIXL."""

Way = Literal["auto", "shm", "nixl", "stream"]


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``back_end``: ``auto`` maps the memory of a peer on the same host, else uses NIXL where both sides have
    it and an RDMA network, else a socket. Any other value uses that one or fails.

    ``verifies``: compare checksums of every block before it counts, which costs both sides a look at all
    bytes.
    """

    back_end: Way = "auto"
    verifies: bool = False
