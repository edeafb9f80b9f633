from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv import prefix_keys
from dynamo_sdk.kv.hashing import block_hashes
from dynamo_sdk.kv.prefix_keys import extend_keys, pack_words
from dynamo_sdk.types import pack_tokens

words = st.integers(0, 2**64 - 1)


def test_keys_do_not_change_between_versions():
    """They may be written to logs that are read later."""
    assert prefix_keys(pack_tokens(range(1, 13)), 4).tolist() == [
        12306726647025172708,
        1213014483180742816,
        15494644197494234052,
    ]


def test_only_full_blocks_have_keys():
    tokens = pack_tokens(range(11))
    assert len(prefix_keys(tokens, 4)) == 2
    assert len(prefix_keys(tokens[:12], 4)) == 0


@given(st.lists(words, max_size=20), st.data())
def test_a_prefix_extended_is_the_whole(hashes: list[int], data: st.DataObject):
    whole = extend_keys(0, 0, pack_words(hashes)).tolist()
    cut = data.draw(st.integers(0, len(hashes)))
    first = whole[cut - 1] if cut else 0
    assert whole[cut:] == extend_keys(first, cut, pack_words(hashes[cut:])).tolist()


def test_positions_beyond_the_first_table_have_keys_too():
    hashes = pack_words(range(1, 5001))
    whole = extend_keys(0, 0, hashes).tolist()
    assert len(set(whole)) == 5000
    assert whole[3000:] == extend_keys(whole[2999], 3000, hashes[3000 * 8 :]).tolist()


def test_order_adapter_and_salt_matter():
    one, other = pack_tokens([1, 2, 3, 4]), pack_tokens([5, 6, 7, 8])
    last = {
        prefix_keys(one + other, 4)[1],
        prefix_keys(other + one, 4)[1],
        prefix_keys(one + other, 4, lora="a")[1],
        prefix_keys(one + other, 4, cache_salt="a")[1],
    }
    assert len(last) == 4


def test_keys_are_made_of_the_block_hashes_that_others_send():
    tokens = pack_tokens(range(64))
    assert extend_keys(0, 0, pack_words(block_hashes(tokens, 16))) == prefix_keys(tokens, 16)
