"""Blocks of the stand-in, and what it says about them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any

GLOBAL_WINDOW, SMALL_WINDOW = 4096, 128
_Key = tuple[str | None, tuple[int, ...]]


class Mailbox:
    """Rows that wait to be polled; ``limit``: the oldest are forgotten. A question waits for news."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.rows: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, row: Any) -> None:
        self.rows = [*self.rows, row][-self._limit :] if self._limit else []
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, timeout_s: float) -> AsyncIterator[Any]:
        while True:
            while self.rows:
                yield self.rows.pop(0)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(self._waiter, timeout_s)
            except TimeoutError:
                return


class Cache:
    """A key is salt and all tokens up to a block's end; a last block that is not full is kept, too."""

    def __init__(
        self, num_blocks: int, block_size: int, mailbox: Mailbox, *, rank: int | None = None
    ) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._mailbox = mailbox
        self._rank = {} if rank is None else {"attention_dp_rank": rank}
        self._held: OrderedDict[_Key, None] = OrderedDict()
        self._num_events = 0
        for window in (SMALL_WINDOW, GLOBAL_WINDOW):
            self._tell({"type": "created", "num_blocks_per_cache_level": [num_blocks]}, window)

    def num_cached(self, tokens: list[int], salt: str | None) -> int:
        """Tokens of the leading full blocks; the last token is always computed."""
        found = 0
        for end in range(self._block_size, len(tokens), self._block_size):
            if (salt, tuple(tokens[:end])) not in self._held:
                break
            self._held.move_to_end((salt, tuple(tokens[:end])))
            found = end
        return found

    def store(self, tokens: list[int], salt: str | None) -> None:
        chain: set[_Key] = set()
        for start in range(0, len(tokens), self._block_size):
            key = salt, tuple(tokens[: start + self._block_size])
            chain.add(key)
            if key in self._held:
                self._held.move_to_end(key)
                continue
            self._drop_unfinished(salt, tokens, start)
            if len(self._held) >= self._num_blocks and not self._evict(chain):
                return
            self._held[key] = None
            self._tell_stored(key, start)

    def _drop_unfinished(self, salt: str | None, tokens: list[int], start: int) -> None:
        """A block that was not full is another one when it has grown."""
        for end in range(start + 1, min(start + self._block_size, len(tokens))):
            if (salt, tuple(tokens[:end])) in self._held:
                self._remove((salt, tuple(tokens[:end])))

    def _evict(self, chain: set[_Key]) -> bool:
        """The one that was not used for longest, of those that no other block follows."""
        parents = {self._parent(key) for key in self._held}
        victim = next((key for key in self._held if key not in parents and key not in chain), None)
        if victim is not None:
            self._remove(victim)
        return victim is not None

    def _parent(self, key: _Key) -> _Key:
        salt, tokens = key
        return salt, tokens[: (len(tokens) - 1) // self._block_size * self._block_size]

    def _remove(self, key: _Key) -> None:
        del self._held[key]
        self._tell({"type": "removed", "block_hashes": [_name(key)]})

    def _tell_stored(self, key: _Key, start: int) -> None:
        salt, tokens = key
        block: dict[str, object] = {
            "type": "stored_block",
            "block_hash": _name(key),
            "tokens": [
                {"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens[start:]
            ],
            "cache_level": 0,
            "priority": 35,
        }
        if salt is not None:
            block["cache_salt"] = salt
        parent = _name(self._parent(key)) if start else None
        data = {"type": "stored", "parent_hash": parent, "blocks": [block]}
        self._tell(data, SMALL_WINDOW)
        self._tell(data)

    def _tell(self, data: dict[str, object], window: int = GLOBAL_WINDOW) -> None:
        row = {"event_id": self._num_events, "window_size": window, "data": data, **self._rank}
        self._mailbox.put(row)
        self._num_events += 1


def _name(key: _Key) -> int:
    """Unsigned, 64 bits."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")
