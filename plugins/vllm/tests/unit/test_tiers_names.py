"""What two blocks must have in common to have one name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from dynamo_sdk.kv import cache_keys, cache_root
from dynamo_sdk.types.tokens import pack_tokens
from dynamo_sdk_vllm.tiers.names import BlockNamer, namespace_of


def request(**facts: object) -> SimpleNamespace:
    return SimpleNamespace(
        **{"all_token_ids": list(range(20)), "cache_salt": None, "lora_request": None, **facts}
    )


def test_names_are_those_of_the_sdk():
    namer, asks, keys = BlockNamer(b"model", 4), request(), []
    namer.extend(keys, asks, 2, root=namer.root(asks))
    namer.extend(keys, asks, 5, root=namer.root(asks))
    namer.extend(keys, asks, 3, root=namer.root(asks))
    assert keys == cache_keys(pack_tokens(range(20)), 4, root=cache_root(b"model"))


def test_an_adapter_is_its_weights(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    lora = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path=str(tmp_path))
    first = BlockNamer(b"model", 4).root(request(lora_request=lora))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    second = BlockNamer(b"model", 4).root(request(lora_request=lora))
    assert len({first, second, BlockNamer(b"model", 4).root(request())}) == 3


def test_a_namespace_is_all_of_its_facts():
    one = namespace_of({"a": 1, "b": {"c": 2}})
    assert one == namespace_of({"b": {"c": 2}, "a": 1})
    assert one != namespace_of({"a": 1, "b": {"c": 3}})
