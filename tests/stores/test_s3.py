"""The S3 store against a server process, and through a proxy that is down, slow, overloaded or lies."""

import itertools
import logging

import anyio
import httpx
import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.interfaces import KVStoreFailureKind as Kind
from dynamo_sdk.stores import S3Store, S3StoreConfig
from dynamo_sdk.stores.failures import REST_S
from dynamo_sdk.testing import check_kv_store

from .conftest import BLOCK_BYTES, Witness, block, key
from .s3_server import BUCKET, bad_proxy, s3_server

pytest.importorskip("obstore")
pytest.importorskip("moto")
pytestmark = pytest.mark.anyio

prefixes = (f"test-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def url():
    with s3_server() as url:
        yield url


def config(url, **settings):
    defaults = {
        "block_bytes": BLOCK_BYTES,
        "bucket": BUCKET,
        "prefix": next(prefixes),
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "secret",
    }
    return S3StoreConfig(endpoint_url=url, **defaults | settings)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Started:
    """``store``, with a ``witness`` and a ``clock``."""

    def __init__(self, config):
        self.clock = Clock()
        self.store = S3Store(config, monotonic_s=self.clock)
        self.store.witness = Witness()
        self.store.clock = self.clock
        self.store.listen(self.store.witness)

    async def __aenter__(self):
        await self.store.start()
        return self.store

    async def __aexit__(self, *_):
        await self.store.close()
        assert self.store.statistics().num_pending == 0


def offers(*numbers, size=BLOCK_BYTES):
    return [BlockOffer(key(number), block(number, size)) for number in numbers]


def buffers(num, size=BLOCK_BYTES):
    return [memoryview(bytearray(size)) for _ in range(num)]


async def test_conformance(url):
    report = await check_kv_store(lambda: S3Store(config(url)), block_bytes=BLOCK_BYTES)
    report.raise_if_failed()


async def test_blocks_on_threads(url):
    size = 300 << 10
    async with Started(config(url, block_bytes=size)) as store:
        assert await store.put_many(offers(1, 2, 3, size=size)) == [True] * 3
        into = buffers(4, size)
        assert await store.get_into([key(3), key(9), key(1), key(3)], into) == [True, False, True, True]
        assert [into[i] == block(n, size) for i, n in ((0, 3), (2, 1), (3, 3))] == [True] * 3


async def test_workers_share_the_bucket_and_upload_once(url):
    async with bad_proxy(url) as proxy:
        settings = config(proxy.url)
        async with Started(settings) as one, Started(settings) as two:
            assert await one.put_many(offers(1, 2)) == [True, True]
            assert await two.contains([key(1), key(3), key(2)]) == [True, False, True]
            assert await two.get(key(2)) == block(2)
            assert two.witness.keys == {key(1), key(2)}
            assert await two.put_many(offers(1, 2)) == [True, True]
            assert two.statistics().num_kept == 2
            assert two.statistics().written_bytes == 0
            assert sum(request.startswith("PUT") for request in proxy.requests) == 2

            await one.delete([key(1)])
            assert await two.get(key(1)) is None  # it still thought so
            assert await two.contains([key(1), key(2)]) == [False, True]
            assert two.witness.keys == {key(2)}


async def test_many_are_asked_about(url):
    settings = config(url, num_concurrent=2)
    async with Started(settings) as one, Started(settings) as two:
        await one.put_many(offers(*range(0, 40, 2)))
        assert await two.contains([key(number) for number in range(40)]) == [True, False] * 20


async def test_answers_are_believed_for_a_while(url):
    async with bad_proxy(url) as proxy:
        settings = config(proxy.url, present_s=60, absent_s=5)
        async with Started(settings) as one, Started(settings) as two:
            await one.put_many(offers(1, 2))
            assert await two.contains([key(1), key(2), key(3)]) == [True, True, False]
            num_requests = len(proxy.requests)
            assert await two.contains([key(1), key(2), key(3)]) == [True, True, False]
            assert await two.count_prefix([key(1), key(2), key(3)]) == 2
            assert await two.get(key(3)) is None
            assert len(proxy.requests) == num_requests
            await one.put_many(offers(3))
            two.clock.now_s += 6
            assert await two.count_prefix([key(1), key(2), key(3)]) == 3
            assert len(proxy.requests) == num_requests + 3  # look, put, look


async def test_whoever_gives_up_on_a_lookup_leaves_its_answer_behind(url):
    async with bad_proxy(url) as proxy:
        settings = config(proxy.url)
        async with Started(settings) as one, Started(settings) as two:
            await one.put_many(offers(1))
            proxy.fault = "hang"
            num_requests = len(proxy.requests)
            for _ in range(3):
                with anyio.move_on_after(0.05):
                    await two.contains([key(1), key(2)])
            assert len(proxy.requests) == num_requests + 2  # each was asked for once
            with anyio.fail_after(20):
                assert await two.count_prefix([key(3)]) == 0  # waits until the server is given up
            assert two.statistics().num_failures == 3
            assert await two.count_prefix([key(4)]) == 0
            assert len(proxy.requests) == num_requests + 3  # it rests


async def test_a_long_sequence_takes_few_questions(url):
    async with bad_proxy(url) as proxy:
        settings = config(proxy.url, num_concurrent=8)
        async with Started(settings) as one, Started(settings) as two:
            await one.put_many(offers(*range(100)))
            proxy.requests.clear()
            assert await two.count_prefix([key(number) for number in range(400)]) == 100
            assert len(proxy.requests) <= 24


@pytest.mark.parametrize("fault", ["503", "cut", "hang"])
async def test_a_failing_server_is_a_miss_and_then_left_alone(url, fault, caplog):
    async with bad_proxy(url) as proxy:
        async with Started(config(proxy.url, timeout_s=2, num_concurrent=4)) as store:
            await store.put_many(offers(*range(8)))
            proxy.fault = fault
            with caplog.at_level(logging.WARNING), anyio.fail_after(20):
                assert await store.get_into([key(n) for n in range(8)], buffers(8)) == [False] * 8
            assert {failure.kind for failure in store.witness.failures} == {Kind.IO}
            assert 3 <= store.statistics().num_failures < 8
            assert len([line for line in caplog.messages if "not kept or found" in line]) == 1
            assert len([line for line in caplog.messages if "rests for" in line]) == 1

            proxy.requests.clear()
            assert await store.get(key(1)) is None
            assert await store.contains([key(1)]) == [False]
            assert await store.count_prefix([key(1)]) == 0
            assert not proxy.requests

            proxy.fault = None
            store.clock.now_s += REST_S + 1
            assert await store.get(key(1)) == block(1)
            assert await store.put_many(offers(50)) == [True]


@pytest.mark.parametrize("fault", ["503", "hang"])
async def test_writes_to_a_failing_server_are_not_kept(url, fault):
    async with bad_proxy(url) as proxy:
        async with Started(config(proxy.url, timeout_s=0.5)) as store:
            proxy.fault = fault
            with anyio.fail_after(20):
                assert await store.put_many(offers(*range(40))) == [False] * 40
            num_requests = len(proxy.requests)
            assert await store.put(key(99), block(99)) is False
            assert len(proxy.requests) == num_requests
            assert store.witness.keys == set()
            proxy.fault = None
            store.clock.now_s += REST_S + 1
            assert await store.put(key(99), block(99)) is True


async def test_wrong_bytes_are_dropped(url):
    async with bad_proxy(url) as proxy:
        async with Started(config(proxy.url)) as store:
            await store.put_many(offers(1, 2))
            proxy.fault = "flip"
            assert await store.get(key(1)) is None
            assert [failure.kind for failure in store.witness.failures] == [Kind.CORRUPT]
            proxy.fault = None
            assert await store.get(key(2)) == block(2)
            assert await store.contains([key(1)]) == [False]
            assert await store.put(key(1), block(1)) is True  # it is gone, so it is put again
            assert await store.get(key(1)) == block(1)


@pytest.mark.parametrize("what", ["another block", "short", "long", "empty"])
async def test_what_others_write_there_is_never_believed(url, what):
    settings = config(url)
    async with Started(settings) as store:
        await store.put_many(offers(1, 2))
        paths = [f"{url}/{BUCKET}/{settings.prefix}/v1/{k[:2]}/{k}" for k in (key(1).hex(), key(2).hex())]
        signed = {"authorization": "AWS4-HMAC-SHA256 Credential=key/x/us-east-1/s3/aws4_request"}
        async with httpx.AsyncClient(trust_env=False, headers=signed) as client:
            content = (await client.get(paths[1])).raise_for_status().content
            content = {"another block": content, "short": content[:-1], "long": content * 2, "empty": b""}[
                what
            ]
            (await client.put(paths[0], content=content)).raise_for_status()
        assert await store.get(key(1)) is None
        assert await store.get(key(2)) == block(2)
        assert [failure.kind for failure in store.witness.failures] == [Kind.CORRUPT]


async def test_a_server_that_is_down_at_start_is_waited_for(caplog):
    async with Started(config("http://127.0.0.1:9", connect_timeout_s=0.5)) as store:
        assert "does not answer yet" in caplog.text
        assert await store.get(key(1)) is None
        assert await store.put(key(1), block(1)) is False


async def test_what_can_never_work_is_refused_at_start(url):
    with pytest.raises(ConfigError, match=r"'other-bucket' at .* does not exist"):
        await S3Store(config(url, bucket="other-bucket")).start()


@pytest.mark.parametrize("url", ["127.0.0.1:9", "s3://kv-blocks", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="begin with http:// or https://"):
        config(url)


async def test_a_server_that_stays_down_is_a_line_a_minute(caplog):
    async with Started(config("http://127.0.0.1:9", connect_timeout_s=0.5, timeout_s=0.5)) as store:
        for _ in range(5):
            for number in range(4):
                await store.put(key(number), block(number))
            store.clock.now_s += REST_S + 1
        assert caplog.text.count("rests for") == 1
        store.clock.now_s += 60
        await store.put(key(9), block(9))
        assert caplog.text.count("rests for") == 2


async def test_a_missing_library_is_named(url, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'dynamo-sdk\[s3\]'"):
        await S3Store(config(url)).start()


async def test_too_many_pending_writes_are_refused(url):
    async with Started(config(url, max_pending_write_bytes=2 * BLOCK_BYTES)) as store:
        assert await store.put_many(offers(1, 2, 3)) == [True, True, False]
        assert [failure.kind for failure in store.witness.failures] == [Kind.BUSY]
        assert await store.put_many(offers(3)) == [True]


async def test_cancelled_loads_leave_the_store_whole(url):
    async with Started(config(url, num_concurrent=2)) as store:
        await store.put_many(offers(*range(6)))
        for turn in range(10):
            with anyio.move_on_after(0.002 * turn):
                await store.get_into([key(n) for n in range(6)], buffers(6))
        into = buffers(6)
        assert await store.get_into([key(n) for n in range(6)], into) == [True] * 6
        assert [bytes(memory) for memory in into] == [block(n) for n in range(6)]


async def test_misuse_is_named(url):
    async with Started(config(url)) as store:
        assert await store.put(key(1), b"short") is False
        with pytest.raises(ValueError, match="a buffer of 3 bytes"):
            await store.get_into([key(1)], [memoryview(bytearray(3))])
        with pytest.raises(ValueError, match="32 bytes at most"):
            await store.put(b"x" * 33, block(1))
