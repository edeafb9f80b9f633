"""A deploy file gives values with origins, or one readable block of problems."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.graph.deploy import Deploy, DeployFile, parse_deploy
from dynamo_sdk.types.plan import Origin

FULL = """\
model: {path: ./models/my-llama, name: my-llama}
router: {name: kv, args: {overlap_weight: 1.0}}
planner: {name: sla, args: {ttft_ms: 500}}
kv: {connector: auto}
services:
  Prefill: {engine: vllm, replicas: 2, gpus: 1, python: ./bin/python, args: {max_num_seqs: 64}}
  Decode:
    engine: vllm
    cpus: 4
"""


def _refusal(text: str = "", *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_deploy(text, overrides=overrides, name="deploy.yaml")
    return caught.value.message


def test_everything_that_can_be_written_is_read() -> None:
    file = parse_deploy(FULL).file
    assert file.model
    assert (file.model.path, file.model.name) == ("./models/my-llama", "my-llama")
    assert (file.router.name, file.router.args) == ("kv", {"overlap_weight": 1.0})
    assert (file.planner.name, file.kv.connector) == ("sla", "auto")
    prefill = file.services["Prefill"]
    assert (prefill.engine, prefill.replicas, prefill.gpus) == ("vllm", 2, 1)
    assert (prefill.python, prefill.args) == ("./bin/python", {"max_num_seqs": 64})
    assert file.services["Decode"].cpus == 4


def test_nothing_written_is_all_defaults() -> None:
    assert parse_deploy() == Deploy()
    assert parse_deploy("services:\n  # all commented out\nrouter:\n").file == DeployFile()
    assert parse_deploy("services:\n  Decode:\n").file.services["Decode"].replicas is None


def test_short_forms() -> None:
    file = parse_deploy("model: demo\nrouter: kv\nplanner: sla").file
    assert file == parse_deploy("model: {path: demo}\nrouter: {name: kv}\nplanner: {name: sla}").file
    assert parse_deploy("models: {a: ./a, b: {path: ./b, router: kv}}").file.models["a"].path == "./a"


def test_several_models() -> None:
    models = parse_deploy(
        "models: {a: {path: ./a, router: kv, kv: {connector: nixl}}, b: {path: ./b}}"
    ).file.models
    assert models["a"].router
    assert (models["a"].router.name, models["a"].kv.connector) == ("kv", "nixl")
    assert models["b"].router is None


def test_overrides_win_and_later_ones_last() -> None:
    deploy = parse_deploy(
        FULL,
        overrides=[
            "services.Decode.replicas=2",
            "services.Decode.replicas=3",
            "services.Prefill.args={max_num_seqs: 8, flags: [a, b]}",
            "services.Api.cpus=1",
            "router=random",
            "model.path=./other",
            "services.Prefill.python=",
        ],
    )
    services = deploy.file.services
    assert services["Decode"].replicas == 3
    assert services["Prefill"].args == {"max_num_seqs": 8, "flags": ["a", "b"]}
    assert services["Prefill"].python is None
    assert services["Api"].cpus == 1
    assert (deploy.file.router.name, deploy.file.router.args) == ("random", {})
    assert deploy.file.model
    assert deploy.file.model.name == "my-llama"


def test_an_override_reaches_into_a_short_form() -> None:
    file = parse_deploy("model: demo\nrouter: kv", overrides=["model.name=d", "router.args.w=2"]).file
    assert file.model
    assert (file.model.path, file.model.name) == ("demo", "d")
    assert (file.router.name, file.router.args) == ("kv", {"w": 2})


def test_quotes_protect_a_dot_in_a_key() -> None:
    file = parse_deploy("", overrides=['models."llama-3.1".path=./x']).file
    assert file.models["llama-3.1"].path == "./x"


def test_each_value_has_its_origin() -> None:
    deploy = parse_deploy(FULL, overrides=["services.Prefill.args.max_num_seqs=8", "router=random"])
    assert deploy.origin(("model", "path")) is Origin.DEPLOY
    assert deploy.origin(("services", "Prefill", "args", "max_num_seqs")) is Origin.COMMAND
    assert deploy.origin(("services", "Prefill", "engine")) is Origin.DEPLOY
    assert deploy.origin(("router", "name")) is Origin.COMMAND
    assert deploy.origin(("router", "args")) is None
    assert deploy.origin(("services", "Decode", "gpus")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servces: {}", "deploy.yaml, line 1: servces: unknown key; did you mean 'services'?"),
        ("services: {A: {replcas: 1}}", "services.A.replcas: unknown key; did you mean 'replicas'?"),
        ("router: {nam: x}", "router.nam: unknown key; did you mean 'name'? (known: args, name)"),
        ("models: {a: {path: x, pth: y}}", "models.a.pth: unknown key; did you mean 'path'?"),
        (
            "models: {a: {path: x, router: {nme: y}}}",
            "models.a.router.nme: unknown key; did you mean 'name'?",
        ),
        ("kv: {tires: []}", "kv.tires: unknown key; did you mean 'tiers'?"),
        ("model: {name: x}", "model.path: is missing"),
        (
            "models: {a: {}}",
            "models.a.path: is missing; name the model's folder or Hugging Face id, or `demo`",
        ),
        ("model: ''", "model.path: should not be empty, is ''"),
        ("services: {A: {replicas: -1}}", "services.A.replicas: should be greater than or equal to 0, is -1"),
        ("services: {A: {replicas: two}}", "services.A.replicas: should be a valid integer, is 'two'"),
        ("services: {A: {replicas: 1.5}}", "services.A.replicas: should be a valid integer, is 1.5"),
        ("services: {A: {replicas: true}}", "services.A.replicas: should be a valid integer, is True"),
        ("services: {A: {cpus: 0}}", "services.A.cpus: should be greater than or equal to 1, is 0"),
        ("services: {A: {args: 3}}", "services.A.args: should be a mapping, is 3"),
        ("services: {A: 3}", "services.A: should be a mapping, is 3"),
        ("services: [A]", "services: should be a mapping, is ['A']"),
        ("router: [kv]", "router: should be a mapping, is ['kv']"),
        ("- services", "deploy.yaml: a deploy file is a mapping"),
        ("model: a\nmodels: {b: c}", "deploy.yaml, line 2: models: give `model` (one) or `models` (several)"),
    ],
)
def test_a_problem_names_place_rule_and_nearest(text: str, message: str) -> None:
    assert message in _refusal(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("services.A.replicas", "--set services.A.replicas: write path=value"),
        ("=3", "is not a path"),
        ("services.A.replcas=3", "--set: services.A.replcas: unknown key; did you mean 'replicas'?"),
        ("services.A.gpus=x", "--set: services.A.gpus: should be a valid integer, is 'x'"),
        ("services.A.args=[", "--set services.A.args=[, line 1, column"),
        (
            "services.A.replicas.x=1",
            "--set services.A.replicas.x=1: services.A.replicas is 2 and has no keys",
        ),
    ],
)
def test_overrides_obey_the_same_rules(override: str, message: str) -> None:
    assert message in _refusal("services: {A: {replicas: 2}}", override)


def test_all_problems_come_in_one_block_with_their_lines() -> None:
    message = _refusal("services:\n  A: {replcas: 1}\n  B:\n    gpus: x\nfoo: 1\n", "router.nme=x")
    assert message.splitlines()[0] == "4 problems:"
    assert "  deploy.yaml, line 2: services.A.replcas" in message
    assert "  deploy.yaml, line 4: services.B.gpus" in message
    assert "  deploy.yaml, line 5: foo" in message
    assert "  --set: router.nme" in message


def test_the_place_of_a_key_that_is_not_there_is_its_nearest_parent() -> None:
    deploy = parse_deploy("services:\n  A: {gpus: 1}\n", overrides=["services.B.gpus=1"], name="d.yaml")
    assert deploy.place(("services", "A", "engine")) == "d.yaml, line 2"
    assert deploy.place(("services", "B")) == "--set"
    assert deploy.place(("router", "name")) is None


_KEYS = st.sampled_from(
    [
        "model",
        "models",
        "router",
        "planner",
        "kv",
        "services",
        "name",
        "path",
        "args",
        "A",
        "gpus",
        "replicas",
        "<<",
        "",
    ]
)
_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["demo", "", "x.y", "1"])
_DOCUMENTS = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=15,
)
_OVERRIDES = st.lists(
    st.builds(
        "{}={}".format,
        st.lists(_KEYS, min_size=1, max_size=4).map(".".join),
        _DOCUMENTS.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
    )
    | st.text(max_size=20),
    max_size=3,
)


@given(_DOCUMENTS.map(yaml.safe_dump) | st.text(max_size=40), _OVERRIDES)
def test_any_input_gives_a_deploy_or_a_config_error(text: str, overrides: Sequence[str]) -> None:
    try:
        deploy = parse_deploy(text, overrides=overrides)
    except ConfigError:
        return
    assert parse_deploy(text, overrides=overrides) == deploy
    assert DeployFile.model_validate(deploy.file.model_dump(exclude_unset=True)) == deploy.file
