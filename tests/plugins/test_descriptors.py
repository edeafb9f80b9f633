from __future__ import annotations

import pytest

from dynamo_sdk.errors import PluginError
from dynamo_sdk.plugins import EngineDescriptor, Kind, RouterDescriptor


@pytest.mark.parametrize("name", ["echo", "power-of-two", "llama.cpp", "trt_llm", "v2"])
def test_usable_names(name: str) -> None:
    assert RouterDescriptor(name=name, factory="a.b:C").name == name


@pytest.mark.parametrize("name", ["", "Echo", "a b", "-a", "a-", "a--b", "ä", "a/b"])
def test_unusable_names(name: str) -> None:
    with pytest.raises(PluginError, match="router name"):
        RouterDescriptor(name=name, factory="a.b:C")


@pytest.mark.parametrize("factory", ["", "a.b", "a.b.C", "a:b:c", ":C", "a.:C", "a b:C", "a:1"])
def test_what_is_no_import_string(factory: str) -> None:
    with pytest.raises(PluginError, match="factory"):
        EngineDescriptor(name="x", factory=factory)
    if factory:
        with pytest.raises(PluginError, match="config"):
            EngineDescriptor(name="x", factory="a:C", config=factory)


def test_a_descriptor_is_a_value() -> None:
    one, two = (EngineDescriptor(name="x", factory="a:C") for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one.kind is Kind.ENGINE
    with pytest.raises(AttributeError):
        one.name = "y"  # type: ignore[misc]
