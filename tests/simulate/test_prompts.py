"""Keys that were looked up tell prompts apart exactly where hashed ones do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv import cache_keys, cache_root
from dynamo_sdk.simulate import Arrival
from dynamo_sdk.simulate.prompts import PromptBook
from dynamo_sdk.types import num_tokens

prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=4).map(tuple), st.integers(1, 40)), min_size=1, max_size=6
)


@given(prompts, st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_keys_are_equal_where_prefixes_are(drawn: list[tuple[tuple[int, ...], int]], block_size: int) -> None:
    book = PromptBook(block_tokens=8, block_size=block_size)
    made = [
        book.prompt(Arrival(at_s=0, num_input_tokens=length, num_output_tokens=1, hash_ids=ids), index)
        for index, (ids, length) in enumerate(drawn)
    ]
    names: dict[bytes, bytes] = {}
    for prompt, (_, length) in zip(made, drawn, strict=True):
        assert num_tokens(prompt.tokens) == length
        hashed = cache_keys(prompt.tokens, block_size, root=cache_root(b""))
        assert len(prompt.keys) == len(hashed)
        assert prompt.hashes == b"".join(key[:8] for key in prompt.keys)
        for key, true_key in zip(prompt.keys, hashed, strict=True):
            assert names.setdefault(key, true_key) == true_key
    assert len(set(names.values())) == len(names)
