"""``kv.tiers`` of a deploy file: what is planned, what is refused, and sizes as people write them."""

from __future__ import annotations

import pytest

from dynamo_sdk import Graph
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.compile import compile_plan
from dynamo_sdk.graph.deploy import parse_deploy
from dynamo_sdk.graph.sizes import parse_size
from dynamo_sdk.types.plan import DeploymentPlan, HostInventory, Inventory, KVTierPlan, Origin

from .plugins import paper_registry
from .services import Everything, Simple

HERE = Inventory(hosts=(HostInventory(name="here", num_cpus=2),))
RAM_AND_DISK = "kv: {tiers: [{kind: ram, capacity: 2GiB}, {kind: disk, path: ./kv-cache, capacity: 20GiB}]}"


def compiled(text: str, *overrides: str, graph: Graph | None = None) -> DeploymentPlan:
    return compile_plan(
        graph or Graph(Simple),
        target="graph.py",
        registry=paper_registry(),
        inventory=HERE,
        deploy=parse_deploy(text, overrides=overrides, name="deploy.yaml"),
    )


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compiled(text, *overrides)
    return caught.value.message


def test_tiers_are_planned_in_order_with_the_defaults_of_their_stores() -> None:
    plan = compiled(RAM_AND_DISK)
    assert plan.models[0].kv_tiers == (
        KVTierPlan(name="ram", kind="ram", capacity_bytes=2 << 30, args={"capacity_bytes": 2 << 30}),
        KVTierPlan(
            name="disk",
            kind="disk",
            capacity_bytes=20 << 30,
            args={"capacity_bytes": 20 << 30, "path": "./kv-cache"},
            min_uses=2,
        ),
    )
    settings = {setting.path: (setting.value, setting.origin) for setting in plan.settings}
    assert settings["kv.tiers[1].path"] == ("./kv-cache", Origin.DEPLOY)
    assert settings["kv.tiers[1].min_uses"] == (2, Origin.PLUGIN)
    assert settings["kv.tiers[0].eviction"] == ("lru", Origin.PLUGIN)
    assert "kv.tiers[0].block_bytes" not in settings


def test_no_tiers_is_what_nobody_wrote() -> None:
    assert compiled("").models[0].kv_tiers == ()
    assert compiled("kv: {tiers: []}").models[0].kv_tiers == ()


def test_what_is_written_wins() -> None:
    (tier,) = (
        compiled("kv: {tiers: [{kind: ram, capacity: 1000, eviction: lfu, min_uses: 1, min_priority: -2}]}")
        .models[0]
        .kv_tiers
    )
    assert (tier.min_uses, tier.min_priority) == (1, -2)
    assert tier.args == {"capacity_bytes": 1000, "eviction": "lfu"}


def test_the_command_line_may_set_them() -> None:
    plan = compiled("", "kv.tiers=[{kind: ram, capacity: 5MB}]")
    assert plan.models[0].kv_tiers[0].capacity_bytes == 5_000_000
    settings = {setting.path: setting.origin for setting in plan.settings}
    assert settings["kv.tiers[0].capacity"] is Origin.COMMAND


def test_two_of_a_kind_have_names_of_their_own() -> None:
    tiers = compiled(
        "kv: {tiers: [{kind: disk, path: a, capacity: 1GB}, {kind: disk, path: b, capacity: 1GB}]}"
    )
    assert [tier.name for tier in tiers.models[0].kv_tiers] == ["disk", "disk-2"]


def test_a_model_may_have_its_own() -> None:
    plan = compiled(
        """
        models: {big: {path: ./big}, small: {path: ./small, kv: {tiers: [{kind: ram, capacity: 1MiB}]}}}
        kv: {tiers: [{kind: ram, capacity: 2MiB}]}
        services: {Prefill: {model: big}, Decode: {model: big}, Worker: {model: small}}
        """,
        graph=Graph(Everything),
    )
    assert [model.kv_tiers[0].capacity_bytes for model in plan.models] == [2 << 20, 1 << 20]


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        ("[{kind: ramm, capacity: 1GB}]", "kv.tiers[0].kind: no kv-store 'ramm' (installed: "),
        ("[{kind: ram, capacity: much}]", "kv.tiers[0].capacity: should be a size such as 2GiB"),
        ("[{kind: ram, capacity: 0}]", "kv.tiers[0].capacity: should be above 0"),
        ("[{kind: ram}]", "kv.tiers[0].capacity: is missing; ram needs one, such as 2GiB"),
        ("[{capacity: 1GB}]", "kv.tiers[0].kind: is missing"),
        ("[{kind: disk, capacity: 1GB}]", "kv.tiers[0].path: is missing; kv-store 'disk' needs it"),
        ("[{kind: ram, capacity: 1GB, evicton: lru}]", "unknown argument; did you mean 'eviction'?"),
        ("[{kind: ram, capacity_bytes: 5}]", "kv.tiers[0].capacity_bytes: cannot be given here"),
        ("[{kind: ram, capacity: 1GB, block_bytes: 5}]", "the engine says it"),
        ("[{kind: ram, capacity: 1GB, min_uses: -1}]", "kv.tiers[0].min_uses"),
        (
            "[{kind: ram, capacity: 2GiB}, {kind: disk, path: a, capacity: 1GiB}]",
            "tier 'disk' of 1073741824 bytes is smaller than tier 'ram' above it (2147483648 bytes)",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_place(tiers: str, words: str) -> None:
    message = refusal(f"kv: {{tiers: {tiers}}}")
    assert words in message
    assert message.startswith("deploy.yaml, line 1: kv.tiers")


def test_what_is_wrong_with_all_tiers_comes_at_once() -> None:
    message = refusal(
        "kv: {tiers: [{kind: ram, capacity: 64MiB, min_use: 2, foo: 1}, "
        "{kind: disk, path: ./kv-cache, capacity: lots, num_read_threads: 0}, {kind: nope}, {min_uses: -1}]}"
    )
    for words in (
        "7 problems:",
        "kv.tiers[0].min_use: unknown argument; did you mean 'min_uses'? "
        "(known: capacity, eviction, kind, min_priority, min_uses)",
        "kv.tiers[0].foo: unknown argument (known: capacity, eviction, kind, min_priority, min_uses)",
        "kv.tiers[1].capacity: should be a size such as 2GiB",
        "kv.tiers[1].num_read_threads: should be greater than or equal to 1",
        "kv.tiers[2].kind: no kv-store 'nope'",
        "kv.tiers[3].kind: is missing",
        "kv.tiers[3].min_uses: should be greater than or equal to 0",
    ):
        assert words in message


def test_a_misspelt_capacity_is_named_beside_what_is_missing() -> None:
    message = refusal("kv: {tiers: [{kind: ram, size: 64MiB}]}")
    assert "kv.tiers[0].capacity: is missing" in message
    assert "kv.tiers[0].size: unknown argument (known: capacity, eviction, " in message


def test_what_users_may_write_has_no_words_of_the_stores() -> None:
    for tier in ("{kind: ram, capacity: 1GB, evicton: lru}", "{kind: shared, evicton: lru}"):
        message = refusal(f"kv: {{tiers: [{tier}]}}")
        assert "kv.tiers[0].evicton" in message
        assert "_bytes" not in message
        assert ("capacity" in message) == ("ram" in tier), "a store without a capacity offers none"


@pytest.mark.parametrize("above", [(), ("model",), ("models", "m")])
def test_tiers_are_told_with_what_else_the_file_has_wrong(above: tuple[str, ...]) -> None:
    where = ".".join((*above, "kv.tiers"))
    tiers = f"{where}=[{{kind: disk, path: a, capacity: lots}}, {{kind: ram, capacity: 0}}, ram]"
    with pytest.raises(ConfigError) as caught:
        parse_deploy("services: {Worker: {gpus: many}}", overrides=[tiers])
    for words in (
        "services.Worker.gpus: should be a valid integer",
        f"{where}[0].capacity: should be a size",
        f"{where}[1].capacity: should be above 0",
        f"{where}[2]: should be a mapping",
    ):
        assert words in caught.value.message


def test_an_engine_that_keeps_no_blocks_there_is_named() -> None:
    message = refusal(f"services: {{Worker: {{engine: whole}}}}\n{RAM_AND_DISK}")
    assert "kv.tiers: engine 'whole' of service Worker keeps no blocks in tiers" in message


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5KiB", 1536),
        ("500MB", 500_000_000),
        ("12", 12),
        (7, 7),
        ("3B", 3),
        ("0.1MB", 100_000),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str | int, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "2 G", "-1", "1e9", "0", "0.1B", "2GiB2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        parse_size(text)
