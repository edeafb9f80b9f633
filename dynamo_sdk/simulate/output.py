"""Output tokens of a simulation: which they are matters to nobody, only that no two requests share any."""

from __future__ import annotations

from dynamo_sdk.engines.mocker import TokenSource
from dynamo_sdk.types import SamplingParams


class OneTokenEach(TokenSource):
    """A request says one token over and over: its seed."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def next_id(self, sampling: SamplingParams, position: int) -> int:
        return sampling.seed

    def next_ids(self, sampling: SamplingParams, position: int, count: int) -> list[int]:
        return [sampling.seed] * count
