import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dynamo_sdk.kv import (
    block_hashes,
    cache_keys,
    cache_root,
    next_cache_key,
    routing_hashes,
    routing_seed,
    sequence_hashes,
)
from dynamo_sdk.types import pack_tokens

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)
names = st.none() | st.text(max_size=3)


def test_routing_hashes_equal_those_of_dynamo():
    """Known values of NVIDIA Dynamo's token library for blocks of four tokens."""
    tokens = pack_tokens(range(1, 13))
    assert block_hashes(tokens, 4) == [14643705804678351452, 16777012769546811212, 483935686894639516]
    assert routing_hashes(tokens, 4) == [14643705804678351452, 4945711292740353085, 12583592247330656132]


def test_the_adapter_and_the_salt_shift_the_seed():
    assert routing_seed() == routing_seed(lora="", cache_salt="") == 1337
    assert routing_seed(lora="sql") == (1337 + xxh3_64_intdigest(b"sql", 0)) % 2**64
    assert routing_seed(cache_salt="sql") == (1337 + xxh3_64_intdigest(b"sql", 1)) % 2**64


@given(tokens=token_lists, block_size=st.integers(1, 5), cut=st.integers(0, 8))
def test_a_chain_can_be_continued(tokens, block_size, cut):
    hashes = block_hashes(pack_tokens(tokens), block_size)
    head = sequence_hashes(hashes[:cut])
    tail = sequence_hashes(hashes[cut:], parent=head[-1] if head else None)
    assert head + tail == sequence_hashes(hashes)

    root = cache_root(b"model")
    keys = cache_keys(pack_tokens(tokens), block_size, root=root)
    assert len(keys) == len(hashes) == len(tokens) // block_size
    for index, key in enumerate(keys):
        block = pack_tokens(tokens[index * block_size : (index + 1) * block_size])
        assert key == next_cache_key(keys[index - 1] if index else root, block)
        assert len(key) == 16


@given(one=token_lists, other=token_lists, block_size=st.integers(1, 4))
def test_names_agree_exactly_as_far_as_the_tokens_do(one, other, block_size):
    num_common = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    num_common_blocks = num_common // block_size
    root = cache_root(b"model")
    for name_of in (routing_hashes, lambda tokens, size: cache_keys(tokens, size, root=root)):
        pairs = list(
            zip(name_of(pack_tokens(one), block_size), name_of(pack_tokens(other), block_size), strict=False)
        )
        assert [a == b for a, b in pairs] == [i < num_common_blocks for i in range(len(pairs))]


@given(st.tuples(st.binary(max_size=3), names, names), st.tuples(st.binary(max_size=3), names, names))
def test_roots_differ_where_anything_differs(one, other):
    def plain(fields):
        return tuple(field or type(field or "")() if i else field for i, field in enumerate(fields))

    def root(fields):
        return cache_root(fields[0], lora=fields[1], cache_salt=fields[2])

    assert (root(one) == root(other)) == (plain(one) == plain(other))


def test_a_block_needs_a_token():
    with pytest.raises(ValueError, match="block_size"):
        block_hashes(pack_tokens([1]), 0)
