"""``Arrival``: one request of a workload, recorded or made."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Arrival(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Comes at ``at_s``, or ``at_s`` after the end of the one before it in its ``session`` (``is_relative``).

    ``hash_ids``: each names ``Workload.block_tokens`` tokens of the prompt; equal ids are equal tokens. What
    they do not cover is unlike any other prompt.
    """

    at_s: float
    num_input_tokens: int
    num_output_tokens: int
    hash_ids: tuple[int, ...] = ()
    session: str | None = None
    is_relative: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``name``: what people call it. ``arrivals``: those with a time in its order, then those that follow
    others, each session's in its order."""

    name: str
    arrivals: tuple[Arrival, ...]
    block_tokens: int = 512

    @property
    def num_input_tokens(self) -> int:
        return sum(arrival.num_input_tokens for arrival in self.arrivals)

    @property
    def reusable_share(self) -> float:
        """Of the prompt tokens, those that a cache without end on one worker would find."""
        seen: set[tuple[int, int]] = set()
        nodes: dict[tuple[int, int], int] = {}
        num_found = 0
        for arrival in self.arrivals:
            node, num_left, is_known = 0, arrival.num_input_tokens, True
            for hash_id in arrival.hash_ids:
                num_tokens = min(self.block_tokens, num_left)
                if num_tokens <= 0:
                    break
                edge = (node, hash_id)
                is_known = is_known and edge in seen
                num_found += num_tokens if is_known else 0
                seen.add(edge)
                node = nodes.setdefault(edge, len(nodes) + 1)
                num_left -= num_tokens
        return num_found / self.num_input_tokens if self.arrivals else 0.0
