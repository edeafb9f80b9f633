"""``TierContents``: what the tiers below one device hold, and the KV events that say so.

A tier knows keys alone. Its events need what a block follows and which tokens it has; so whoever brings a
block down says that first (``expect``). A tier that survived a restart may remember enough (``restored``);
what it has of which nothing is known, or which is another model's, is told once a request asks for it
(``learn``): no request asks for the other model's.

Who reads events can place a block only after one that they know. A block whose predecessor is neither on the
device nor told of in any tier is not told of, until it is learnt again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from dynamo_sdk.interfaces.kv_store import CacheKey, RestoredBlock
from dynamo_sdk.types.kv_events import BlocksRemoved, KVEvent, KVTier

from .cached_block import CachedBlock, chains, event_names, restored_event, stored_event

KnownBlock = CachedBlock | RestoredBlock


class _Tier:
    def __init__(self, name: KVTier) -> None:
        self.name = name
        self.held: dict[CacheKey, KnownBlock | None] = {}  # None = nothing is known of it but its key
        self.expected: dict[CacheKey, CachedBlock] = {}
        self.told: set[CacheKey] = set()


class TierContents:
    """Tiers are numbers, from the fastest one down. ``is_on_device``: the device's cache has this key.
    ``events_have_tokens``: False spares ``BlocksStored`` its ``token_ids``. ``namespace``: that of the
    blocks which requests here can ask for, and of what goes down from here."""

    def __init__(
        self,
        tiers: Sequence[KVTier],
        block_size: int,
        is_on_device: Callable[[CacheKey], bool],
        *,
        events_have_tokens: bool = True,
        namespace: int = 0,
    ) -> None:
        self._tiers = [_Tier(name) for name in tiers]
        self._block_size = block_size
        self._is_on_device = is_on_device
        self._events_have_tokens = events_have_tokens
        self.namespace = namespace
        self._is_recording = False
        self._events: list[KVEvent] = []
        self._run: list[KnownBlock] = []  # of a BlocksStored that is still growing,
        self._run_tier = KVTier.DEVICE  # and its tier

    def keys(self, tier: int) -> Container[CacheKey]:
        """What ``tier`` holds, as it changes."""
        return self._tiers[tier].held

    def num_blocks(self, tier: int) -> int:
        return len(self._tiers[tier].held)

    # -- what happens

    def expect(self, tier: int, blocks: Iterable[CachedBlock]) -> None:
        """These are on their way to ``tier``."""
        self._tiers[tier].expected.update((block.key, block) for block in blocks)

    def expect_no_more(self, tier: int, blocks: Iterable[CachedBlock]) -> None:
        """Arrived or not."""
        for block in blocks:
            self._tiers[tier].expected.pop(block.key, None)

    def stored(self, tier: int, keys: Iterable[CacheKey]) -> None:
        there = self._tiers[tier]
        for key in keys:
            block = there.held[key] = there.expected.get(key)
            if block is not None:
                self._tell(there, block)

    def restored(self, tier: int, blocks: Iterable[RestoredBlock]) -> None:
        there = self._tiers[tier]
        for block in blocks:
            is_known = block.token_hash != 0 and block.namespace == self.namespace
            there.held[block.key] = block if is_known else None
            if is_known:
                self._tell(there, block)

    def removed(self, tier: int, keys: Sequence[CacheKey]) -> None:
        there = self._tiers[tier]
        for key in keys:
            there.held.pop(key, None)
        self._untell(there, keys)

    def is_untold(self, key: CacheKey) -> bool:
        """Some tier holds it, and events did not say so: time to ``learn``."""
        return self._is_recording and any(key in tier.held and key not in tier.told for tier in self._tiers)

    def learn(self, blocks: Iterable[CachedBlock]) -> None:
        """What these blocks are, parents first, wherever they are held."""
        for block in blocks:
            for tier in self._tiers:
                if block.key in tier.held:
                    tier.held[block.key] = block
                    self._tell(tier, block)

    # -- events

    def take_events(self) -> tuple[KVEvent, ...]:
        """What changed since the last call. Nothing before the first ``snapshot``."""
        self._end_run()
        events = tuple(self._events)
        self._events.clear()
        return events

    def snapshot(self) -> tuple[KVEvent, ...]:
        """Events that add all tiers to what the device holds; from now on, changes are recorded.

        Whoever heard the events before must hear what ``take_events`` gives next: of what the snapshot adds,
        and leaves out because its beginning is gone. Who starts from the snapshot needs none of it.
        """
        held = [tier.held for tier in self._tiers]
        if not self._is_recording:
            self._is_recording = True
            return self._tell_all(held)
        waiting = self.take_events()
        before = [tier.told for tier in self._tiers]
        for tier in self._tiers:
            tier.told = set()
        kept = self._tell_all(before)
        added = self._tell_all(held)
        self._events += waiting
        lost = [told - tier.told for tier, told in zip(self._tiers, before, strict=True)]
        for tier, keys in zip(self._tiers, lost, strict=True):
            tier.told |= keys
        for tier, keys in zip(self._tiers, lost, strict=True):
            self._untell(tier, [key for key in tier.held if key in keys])
        self._events += added
        return kept + added

    def _tell_all(self, keys: Sequence[Container[CacheKey]]) -> tuple[KVEvent, ...]:
        """Events for those of the ``keys`` of each tier that can be placed and were not told of."""
        waiting = [
            (tier, chain)
            for tier, of_tier in zip(self._tiers, keys, strict=True)
            for chain in chains(
                block
                for key, block in tier.held.items()
                if block is not None and key in of_tier and key not in tier.told
            )
        ]
        num_waiting = -1
        while len(waiting) != num_waiting:  # what follows a block of a lower tier is placed in a later round
            num_waiting = len(waiting)
            waiting = [(tier, chain) for tier, chain in waiting if not self._tell_chain(tier, chain)]
        return self.take_events()

    def _tell_chain(self, tier: _Tier, chain: Sequence[KnownBlock]) -> bool:
        is_placed = self._is_placed(chain[0])
        for block in chain if is_placed else ():
            self._tell(tier, block)
        return is_placed

    def _tell(self, tier: _Tier, block: KnownBlock) -> None:
        if not self._is_recording or block.key in tier.told or not self._is_placed(block):
            return
        is_told = self._is_told(block.key, tier.name)
        tier.told.add(block.key)
        if is_told:
            return
        if self._run and not self._goes_on(tier, block):
            self._end_run()
        self._run.append(block)
        self._run_tier = tier.name

    def _untell(self, tier: _Tier, keys: Iterable[CacheKey]) -> None:
        """Those of the ``keys`` that were told of are not any more."""
        told = [key for key in keys if key in tier.told]
        tier.told.difference_update(told)
        gone = [key for key in told if not self._is_told(key, tier.name)]
        if gone:
            self._end_run()
            self._events.append(BlocksRemoved(block_hashes=event_names(gone), tier=tier.name))

    def _goes_on(self, tier: _Tier, block: KnownBlock) -> bool:
        """One event can say both what is last in the run and ``block``."""
        last = self._run[-1]
        return self._run_tier is tier.name and last.key == block.parent and type(last) is type(block)

    def _is_placed(self, block: KnownBlock) -> bool:
        parent = block.parent
        if parent is None or self._is_on_device(parent):
            return True
        return any(parent in tier.told for tier in self._tiers)

    def _is_told(self, key: CacheKey, name: KVTier) -> bool:
        """Of a tier of this name; there may be several."""
        return any(key in tier.told for tier in self._tiers if tier.name is name)

    def _end_run(self) -> None:
        run, self._run = self._run, []
        cached = [block for block in run if isinstance(block, CachedBlock)]
        restored = [block for block in run if isinstance(block, RestoredBlock)]
        if cached:
            self._events.append(
                stored_event(
                    cached, self._block_size, tier=self._run_tier, has_tokens=self._events_have_tokens
                )
            )
        if restored:
            self._events.append(restored_event(restored, self._block_size, tier=self._run_tier))
