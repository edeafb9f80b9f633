"""A second engine answers from the bucket that a first one filled, and without it when the server fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_sdk.interfaces import KVTierSetup
from dynamo_sdk.stores import S3Store, S3StoreConfig
from dynamo_sdk.tiers import onboarding
from dynamo_sdk.types import KVTier, SamplingParams
from tests.stores.s3_server import BUCKET, bad_proxy, s3_server

from .models import random_prompt
from .running import a_request, answer, assert_all_free
from .test_tiers import blocks_of, offloaded
from .tiers import BLOCK_SIZE, tier, tiered_engine

pytest.importorskip("obstore")
pytest.importorskip("moto")
pytestmark = pytest.mark.anyio

PROMPT = random_prompt(4, 90)
NUM_BLOCKS = (len(PROMPT) - 1) // BLOCK_SIZE
SAMPLING = SamplingParams(max_tokens=12, temperature=0.8, seed=5)
prefixes = (f"engine-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _patient_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of a test may be busy."""
    monkeypatch.setattr(onboarding, "LOOKUP_LIMIT_S", 10.0)


def bucket(url: str, prefix: str, **settings: Any) -> KVTierSetup:
    def build(size: int) -> S3Store:
        return S3Store(
            S3StoreConfig(
                block_bytes=size,
                bucket=BUCKET,
                prefix=prefix,
                endpoint_url=url,
                region="us-east-1",
                access_key_id="key",
                secret_access_key="secret",
                **settings,
            )
        )

    return tier("s3", build, kind=KVTier.REMOTE, capacity_bytes=None)


async def test_from_the_bucket_that_another_engine_filled(llama: Path, url: str) -> None:
    setup = bucket(url, next(prefixes))
    async with tiered_engine(llama, setup) as first:
        expected = await answer(first, a_request(PROMPT, SAMPLING))
        await offloaded(first)
        assert blocks_of(first, "s3").store.num_blocks >= NUM_BLOCKS
    async with tiered_engine(llama, setup) as second:
        found = await answer(second, a_request(PROMPT, SAMPLING))
        assert found.token_ids == expected.token_ids
        assert found.last.usage is not None
        assert found.last.usage.num_cached_tokens == NUM_BLOCKS * BLOCK_SIZE
        await offloaded(second)
        assert blocks_of(second, "s3").store.written_bytes == 0, "what is there is not uploaded again"
        assert_all_free(second)


@pytest.mark.parametrize("fault", ["503", "cut", "flip", "hang"])
async def test_a_server_that_fails_costs_no_token(llama: Path, url: str, fault: str) -> None:
    prefix = next(prefixes)
    async with tiered_engine(llama, bucket(url, prefix)) as first:
        expected = await answer(first, a_request(PROMPT, SAMPLING))
        await offloaded(first)
    async with (
        bad_proxy(url) as proxy,
        tiered_engine(llama, bucket(proxy.url, prefix, timeout_s=0.5)) as second,
    ):
        proxy.fault = fault
        for number in range(3):
            async with asyncio.timeout(30):
                found = await answer(second, a_request(PROMPT, SAMPLING, request_id=f"r{number}"))
            assert found.token_ids == expected.token_ids
            second.forget_device()
        assert blocks_of(second, "s3").counts.num_failures > 0
        assert_all_free(second)
        proxy.fault = None
