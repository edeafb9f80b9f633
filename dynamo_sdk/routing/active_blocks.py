"""Which KV blocks our requests use on one worker; a block that several use counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ActiveBlocks:
    """``num_prefill_tokens``: not cached, of requests without a first token."""

    num_prefill_tokens: int = 0
    num_private_blocks: int = 0
    _num_users: dict[int, int] = field(default_factory=dict)
    _requests: dict[str, _Use] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def num_blocks(self) -> int:
        return len(self._num_users) + self.num_private_blocks

    def num_blocks_with(self, keys: Sequence[int], num_blocks: int) -> int:
        """As if a request of ``num_blocks`` were here, the first of which have these keys. Requests use
        prefixes, so what is not used has nothing used behind it."""
        users, low, high = self._num_users, 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if keys[middle] in users else (low, middle)
        return self.num_blocks + num_blocks - low

    def add(self, request_id: str, keys: Sequence[int], num_blocks: int, num_prefill_tokens: int) -> None:
        if request_id in self._requests:
            return
        use = self._requests[request_id] = _Use(tuple(keys), num_blocks - len(keys), num_prefill_tokens)
        for key in use.keys:
            self._num_users[key] = self._num_users.get(key, 0) + 1
        self.num_private_blocks += use.num_private_blocks
        self.num_prefill_tokens += num_prefill_tokens

    def prefill_done(self, request_id: str) -> None:
        use = self._requests.get(request_id)
        if use is not None:
            self.num_prefill_tokens -= use.num_prefill_tokens
            use.num_prefill_tokens = 0

    def remove(self, request_id: str) -> None:
        self.prefill_done(request_id)
        use = self._requests.pop(request_id, None)
        if use is None:
            return
        self.num_private_blocks -= use.num_private_blocks
        for key in use.keys:
            self._num_users[key] -= 1
            if not self._num_users[key]:
                del self._num_users[key]


@dataclass(slots=True)
class _Use:
    keys: tuple[int, ...]
    num_private_blocks: int
    num_prefill_tokens: int
