"""What is compiled, where each value comes from, and what is refused with which words."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk import Graph, depends, endpoint, service
from dynamo_sdk.errors import ConfigError, DynamoError, GraphError, PluginError
from dynamo_sdk.graph import EngineService, FrontendService
from dynamo_sdk.graph.compile import compile_plan
from dynamo_sdk.graph.deploy import parse_deploy
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types import LoraSpec, Role, TransferSettings
from dynamo_sdk.types.plan import DeploymentPlan, EdgePlan, GpuDevice, HostInventory, Inventory, Json, Origin

from .plugins import Objector, paper_registry
from .services import Api, Decode, Everything, Lookup, Prefill, Simple, Worker

REGISTRY = paper_registry()
PAIR = "services: {Prefill: {engine: paper}, Decode: {engine: paper}}"


def _inventory(num_gpus: int = 0) -> Inventory:
    gpus = tuple(GpuDevice(id=str(index)) for index in range(num_gpus))
    return Inventory(hosts=(HostInventory(name="here", num_cpus=2, gpus=gpus),))


def _compile(
    graph: Graph, text: str = "", *overrides: str, num_gpus: int = 0, registry: Registry = REGISTRY
) -> DeploymentPlan:
    deploy = parse_deploy(text, overrides=overrides, name="deploy.yaml")
    return compile_plan(
        graph, target="graph.py", registry=registry, inventory=_inventory(num_gpus), deploy=deploy
    )


def _refusal(
    kind: type[DynamoError], graph: Graph, text: str = "", *overrides: str, num_gpus: int = 0
) -> str:
    with pytest.raises(kind) as caught:
        _compile(graph, text, *overrides, num_gpus=num_gpus)
    return caught.value.message


def _settings(plan: DeploymentPlan) -> dict[str, tuple[Json, Origin]]:
    settings = {setting.path: (setting.value, setting.origin) for setting in plan.settings}
    assert len(settings) == len(plan.settings), "a value is listed twice"
    return settings


def test_the_smallest_graph_needs_no_deploy_file() -> None:
    plan = compile_plan(Graph(Api), target="graph.py", registry=Registry.of(), inventory=_inventory())
    assert [service.name for service in plan.services] == ["Prefill", "Decode", "Api"]
    prefill, api = plan.service("Prefill"), plan.service("Api")
    assert prefill.engine
    assert (prefill.engine.name, prefill.engine.args, prefill.model, prefill.role) == (
        "torch",
        {},
        "demo",
        "prefill",
    )
    assert (len(prefill.replicas), prefill.gpus_per_replica, prefill.connector) == (1, 0, "direct")
    assert api.is_frontend
    assert (api.engine, api.role, api.connector) == (None, None, None)
    assert api.edges == (
        EdgePlan(attribute="prefill", service="Prefill"),
        EdgePlan(attribute="decode", service="Decode"),
    )
    assert [(model.spec.name, model.router.name, model.connector) for model in plan.models] == [
        ("demo", "round-robin", "direct")
    ]
    assert plan.planner is None
    assert plan.target == "graph.py"


def test_everything_that_the_deploy_file_says_reaches_the_plan() -> None:
    plan = _compile(
        Graph(Api),
        """
        model: {path: ./models/tiny, name: tiny}
        router: power-of-two
        planner: {name: wise, args: {max_num_seqs: 3}}
        services:
          Prefill: {engine: paper, replicas: 2, gpus: 1, cpus: 3, python: ./other/python, args: {any: [1]}}
          Decode: {engine: paper}
          Api: {replicas: 2}
        """,
        num_gpus=2,
    )
    prefill = plan.service("Prefill")
    assert prefill.engine
    assert prefill.engine.args == {"any": [1]}
    assert (prefill.cpus_per_replica, prefill.python, prefill.gpus_per_replica) == (3, "./other/python", 1)
    assert [replica.gpu_ids for replica in prefill.replicas] == [("0",), ("1",)]
    assert len(plan.service("Api").replicas) == 2
    assert plan.models[0].spec.path == "./models/tiny"
    assert plan.models[0].router.name == "power-of-two"
    assert plan.planner
    assert (plan.planner.name, plan.planner.args) == ("wise", {"max_num_seqs": 3})


def test_any_class_can_be_a_service() -> None:
    plan = _compile(Graph(Lookup), "services: {Lookup: {args: {size: 5}, replicas: 2, gpus: 1}}", num_gpus=2)
    assert plan.models == ()
    assert plan.service("Lookup").args == {"size": 5}
    assert plan.service("Lookup").factory == "tests.graph.services:Lookup"
    assert [replica.gpu_ids for replica in plan.service("Lookup").replicas] == [("0",), ("1",)]


# Origins


def test_later_sources_win_and_each_value_says_which() -> None:
    plan = _compile(
        Graph(Api, router="random", connector="pigeon"),
        "router: round-robin\nservices: {Prefill: {engine: paper, replicas: 2}, Decode: {engine: paper}}",
        "services.Prefill.replicas=3",
        "services.Decode.args.block_size=32",
    )
    settings = _settings(plan)
    assert settings["router.name"] == ("round-robin", Origin.DEPLOY)
    assert settings["kv.connector"] == ("pigeon", Origin.GRAPH)
    assert settings["services.Prefill.engine"] == ("paper", Origin.DEPLOY)
    assert settings["services.Prefill.replicas"] == (3, Origin.COMMAND)
    assert settings["services.Prefill.gpus"] == (0, Origin.DEFAULT)
    assert settings["services.Prefill.args.block_size"] == (32, Origin.PLUGIN)
    assert settings["services.Prefill.args.names"] == (["a", "b"], Origin.PLUGIN)
    assert settings["services.Decode.args.block_size"] == (32, Origin.COMMAND)
    assert settings["model.path"] == ("demo", Origin.DEFAULT)
    assert "services.Prefill.args.max_num_seqs" not in settings  # unset by the plugin as well
    assert len(plan.service("Prefill").replicas) == 3
    assert plan.models[0].connector == "pigeon"


def test_the_graph_may_name_policies() -> None:
    plan = _compile(Graph(Api, router="random", planner="wise"), PAIR)
    assert plan.models[0].router.name == "random"
    assert plan.planner
    assert _settings(plan)["planner.name"] == ("wise", Origin.GRAPH)


def test_a_model_without_a_name_is_called_like_its_folder_or_its_id() -> None:
    for path, name in [
        ("./models/tiny/", "tiny"),
        ("/srv/big", "big"),
        ("org/model-7b", "org/model-7b"),
        ("/", "/"),
    ]:
        plan = _compile(Graph(Api), PAIR, f"model.path={path}")
        assert plan.models[0].spec.name == name
        assert plan.service("Decode").model == name


# Models


TWO_MODELS = """
models:
  big: {path: ./big, router: random}
  small: {path: ./small, kv: {connector: post}}
services:
  Prefill: {engine: paper, model: big}
  Decode: {engine: papyrus, model: big}
  Worker: {engine: paper, model: small}
"""


def test_several_models_have_policies_of_their_own() -> None:
    plan = _compile(Graph(Everything), TWO_MODELS)
    assert [(model.spec.name, model.router.name, model.connector) for model in plan.models] == [
        ("big", "random", "post"),
        ("small", "round-robin", None),
    ]
    assert plan.service("Worker").model == "small"
    assert _settings(plan)["models.big.router.name"] == ("random", Origin.DEPLOY)


def test_services_must_say_which_of_several_models() -> None:
    message = _refusal(ConfigError, Graph(Everything), TWO_MODELS, "services.Worker.model=")
    assert "services.Worker.model: is missing; several models are served, name one of big, small" in message


def test_an_unknown_model_names_the_nearest() -> None:
    message = _refusal(ConfigError, Graph(Everything), TWO_MODELS, "services.Worker.model=smal")
    assert (
        "--set: services.Worker.model: no model 'smal'; did you mean 'small'? (models: big, small)" in message
    )


def test_a_model_that_nothing_serves_is_refused() -> None:
    message = _refusal(ConfigError, Graph(Everything), TWO_MODELS, "services.Worker.model=big")
    assert "deploy.yaml, line 4: models.small: no service serves model 'small'" in message


def test_adapters_are_in_the_plan_with_their_origins() -> None:
    text = f"{{model: {{path: ./m, loras: {{sql: ./sql}}}}, {PAIR}}}"
    plan = _compile(Graph(Api), text, "model.loras.poet=./poet")
    assert plan.models[0].loras == (LoraSpec(name="sql", path="./sql"), LoraSpec(name="poet", path="./poet"))
    settings = _settings(plan)
    assert settings["model.loras.sql"] == ("./sql", Origin.DEPLOY)
    assert settings["model.loras.poet"] == ("./poet", Origin.COMMAND)
    plan = _compile(Graph(Everything), TWO_MODELS, "models.small.loras.sql=./sql")
    assert [[lora.name for lora in model.loras] for model in plan.models] == [[], ["sql"]]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("models.big.loras.small=./x", "models.big.loras.small: clients mean model 'small' by this name"),
        ("models.big.loras.big=./x", "models.big.loras.big: clients mean model 'big' by this name"),
        (
            "models.small.loras.poet=./x",
            "--set: models.small.loras.poet: clients mean an adapter of models.big by this name; "
            "give the adapter another",
        ),
        ("models.small.lora.poet=./x", "models.small.lora: unknown key; did you mean 'loras'?"),
        ("models.small.loras.x=5", "models.small.loras.x: should be a valid string, is 5"),
        ("models.small.loras.x=''", "models.small.loras.x: should not be empty, is ''"),
    ],
)
def test_adapters_that_cannot_be_are_refused(override: str, said: str) -> None:
    message = _refusal(ConfigError, Graph(Everything), TWO_MODELS, "models.big.loras.poet=./poet", override)
    assert said in message


# Names and arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: {Decod: {}}", "services.Decod: the graph has no such service; did you mean 'Decode'?"),
        (
            "services: {Prefill: {engine: papr}}",
            "services.Prefill.engine: no engine 'papr' (installed: absent,",
        ),
        ("router: rund-robin", "router.name: no router 'rund-robin' (installed:"),
        ("router: rund-robin", "did you mean 'round-robin'?"),
        ("planner: wize", "planner.name: no planner 'wize' (installed: wise); did you mean 'wise'?"),
        ("model: {path: x, router: {args: {a: 1}}}", "model.router: has args but no name (installed: direct"),
        ("planner: {args: {a: 1}}", "planner: has args but no name (installed: wise)"),
        ("router: {name: picky}", "router.args.license: is missing; router 'picky' needs it"),
        ("router: {args: {speed: 1}}", "router.args: router 'round-robin' takes no arguments"),
        (
            "services: {Decode: {engine: paper, args: {max_nm_seqs: 1}}}",
            "services.Decode.args.max_nm_seqs: unknown argument; did you mean 'max_num_seqs'?",
        ),
        (
            "services: {Decode: {engine: paper, args: {block_size: big}}}",
            "services.Decode.args.block_size: should be a valid integer",
        ),
        (
            "services: {Decode: {engine: needy}}",
            "engine 'needy' cannot run the decode role of Decode (it can: aggregated); engines that can: ",
        ),
        ("services: {Api: {engine: paper}}", "services.Api.engine: Api runs no engine"),
        ("services: {Api: {model: demo}}", "services.Api.model: Api runs no engine"),
        ("services: {Api: {args: {x: 1}}}", "services.Api.args.x: Api takes no such argument (known: none)"),
        ("kv: {connector: pidgeon}", "kv.connector: no connector 'pidgeon'; did you mean 'pigeon'?"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(text: str, message: str) -> None:
    defaults = ["services.Prefill.engine=paper"] if "Prefill" not in text else []
    if "Decode: " not in text:
        defaults.append("services.Decode.engine=paper")
    assert message in _refusal(ConfigError, Graph(Api), text, *defaults)


def test_constructor_arguments_of_plain_services_are_checked_by_name() -> None:
    message = _refusal(ConfigError, Graph(Lookup), "services: {Lookup: {args: {sise: 5}}}")
    assert "services.Lookup.args.sise: Lookup takes no such argument; did you mean 'size'?" in message


def test_constructor_arguments_are_checked_by_type_where_it_is_simple() -> None:
    message = _refusal(ConfigError, Graph(Lookup), "services: {Lookup: {args: {size: five}}}")
    assert "services.Lookup.args.size: expected `int`, got `str`" in message


def test_constructor_arguments_without_a_default_are_needed() -> None:
    @service
    class Needy:
        def __init__(self, key: str, extra: Unknown = None, **rest: int) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    assert "services.Needy.args.key: is missing; Needy needs it" in _refusal(ConfigError, Graph(Needy))
    assert _compile(Graph(Needy), "services: {Needy: {args: {key: x, extra: 1, more: 2}}}")


def test_constructor_defaults_are_shown() -> None:
    settings = _settings(_compile(Graph(Lookup), "services: {Lookup: {args: {path: x}}}"))
    assert settings["services.Lookup.args.size"] == (3, Origin.DEFAULT)
    assert settings["services.Lookup.args.path"] == ("x", Origin.DEPLOY)


def test_a_policy_named_by_the_graph_is_checked_too() -> None:
    assert "router.name: no router 'nope'" in _refusal(ConfigError, Graph(Api, router="nope"), PAIR)


def test_engine_args_of_another_environment_are_left_to_it() -> None:
    other = "services: {Prefill: {engine: paper, python: x, args: {unknown: 1}}, Decode: {engine: paper}}"
    plan = _compile(Graph(Api), other)
    assert not [
        path
        for path, (_, origin) in _settings(plan).items()
        if path.startswith("services.Prefill.args") and origin is Origin.PLUGIN
    ]
    assert (
        _compile(Graph(Simple), "services: {Worker: {engine: absent, python: x}}").service("Worker").python
        == "x"
    )


def test_an_engine_whose_config_is_not_installed_here_is_refused() -> None:
    message = _refusal(PluginError, Graph(Simple), "services: {Worker: {engine: absent}}")
    assert "engine 'absent' needs the module 'no_such_module'" in message


def test_all_problems_of_a_stage_come_at_once() -> None:
    message = _refusal(ConfigError, Graph(Api), "router: nope\nservices: {X: {}, Decode: {engine: nope}}")
    assert message.startswith("3 problems:\n")


# Pairs


def test_auto_picks_the_first_connector_that_all_sides_speak_and_somebody_offers() -> None:
    def chosen(prefill: str, decode: str) -> str | None:
        text = f"services: {{Prefill: {{engine: {prefill}}}, Decode: {{engine: {decode}}}}}"
        return _compile(Graph(Api), text).models[0].connector

    assert chosen("paper", "papyrus") == "post"
    assert chosen("papyrus", "paper") == "pigeon"


@pytest.mark.parametrize(
    ("decode", "connector", "message"),
    [
        (
            "stone",
            "auto",
            "no connector in common: Prefill (paper) speaks post, pigeon, lost; Decode (stone) speaks",
        ),
        ("stone", "chisel", "not every side speaks 'chisel'"),
        ("papyrus", "chisel", "name one of: auto, post, pigeon, lost"),
        ("slate", "auto", "the engines agree on lost, which no installed plugin offers"),
    ],
)
def test_engines_without_a_common_connector_are_refused(decode: str, connector: str, message: str) -> None:
    text = f"services: {{Prefill: {{engine: paper}}, Decode: {{engine: {decode}}}}}"
    assert message in _refusal(ConfigError, Graph(Api), text, f"kv.connector={connector}")


def test_block_sizes_of_a_pair_must_agree() -> None:
    message = _refusal(ConfigError, Graph(Api), PAIR, "services.Decode.args.block_size=16")
    assert (
        "--set: services.Decode.args.block_size: model 'demo' is handed over between different block sizes"
        in message
    )
    assert "(Prefill 32, Decode 16 tokens); give all of them one, e.g. 32" in message
    both = ["services.Decode.args.block_size=16", "services.Prefill.args.block_size=16"]
    assert _compile(Graph(Api), PAIR, *both)


@pytest.mark.parametrize(("decode", "is_fine"), [(16, True), (96, True), (32, True), (48, False)])
def test_a_connector_may_recut_multiples(decode: int, is_fine: bool) -> None:
    text = "services: {Prefill: {engine: stone}, Decode: {engine: stone}}"
    size = f"services.Decode.args.block_size={decode}"
    if is_fine:
        assert _compile(Graph(Api), text, size).service("Decode").connector == "chisel"
    else:
        message = _refusal(ConfigError, Graph(Api), text, size)
        assert "(Prefill 32, Decode 48 tokens); give each role one, of which the larger is" in message


def test_how_blocks_travel_is_the_graphs_or_the_models() -> None:
    assert _compile(Graph(Api), PAIR).service("Prefill").transfer is None
    plan = _compile(Graph(Api), PAIR, "kv.transfer.back_end=stream", "kv.transfer.verify=true")
    for name in ("Prefill", "Decode"):
        assert plan.service(name).transfer == TransferSettings(back_end="stream", verify=True)
    text = PAIR + "\nkv: {transfer: {verify: true}}\nmodels: {m: {path: x, kv: {transfer: {back_end: shm}}}}"
    transfer = _compile(Graph(Api), text).service("Decode").transfer
    assert transfer == TransferSettings(back_end="shm", verify=True)
    assert "kv.transfer.back_end" in _refusal(ConfigError, Graph(Api), PAIR, "kv.transfer.back_end=rdma")


def test_an_aggregated_worker_may_cut_blocks_differently() -> None:
    text = PAIR[:-1] + ", Worker: {engine: paper, args: {block_size: 8}}}"
    assert _compile(Graph(Everything), text).service("Worker").connector is None


@service
class Lonely(FrontendService):
    pass


@service
class Half(FrontendService):
    decode = depends(Decode)


@service
class OtherHalf(FrontendService):
    prefill = depends(Prefill)
    worker = depends(Worker)


def test_a_frontend_without_an_engine_is_refused() -> None:
    message = _refusal(GraphError, Graph(Lonely))
    assert "Lonely is a frontend without an engine" in message
    assert "`worker = depends(Worker)`" in message


@pytest.mark.parametrize(
    ("root", "present", "absent"), [(Half, "decode", "prefill"), (OtherHalf, "prefill", "decode")]
)
def test_half_a_pair_is_refused(root: type, present: str, absent: str) -> None:
    text = "services: {Decode: {engine: paper}}" if root is Half else "{}"
    overrides = [] if root is Half else ["services.Prefill.engine=paper", "services.Worker.engine=paper"]
    message = _refusal(GraphError, Graph(root), text, *overrides)
    assert f"{root.__name__} has {present} workers for model 'demo'" in message
    assert f"but no {absent} workers; add a {absent} service" in message


def test_a_pair_split_over_two_models_is_no_pair() -> None:
    text = "models: {a: ./a, b: ./b}\n" + PAIR
    message = _refusal(GraphError, Graph(Api), text, "services.Prefill.model=a", "services.Decode.model=b")
    assert "Api has prefill workers for model 'a' (Prefill) but no decode workers" in message


def test_a_role_that_is_none_is_refused() -> None:
    @service
    class Odd(EngineService):
        role: ClassVar[Role] = "decode"  # type: ignore[assignment]

    assert "Odd.role is 'decode'; set it to one of Role.AGGREGATED" in _refusal(GraphError, Graph(Odd))


# The rest


def test_gpus_beyond_the_inventory_are_refused() -> None:
    message = _refusal(ConfigError, Graph(Api), PAIR, "services.Prefill.gpus=4", num_gpus=1)
    assert "the services need 4 GPUs (Prefill 1 x 4), the inventory has 1 (here: 1)" in message


def test_broken_endpoints_are_refused() -> None:
    @service
    class Broken:
        @endpoint
        async def call(self, x) -> int:  # type: ignore[no-untyped-def]
            return 0

    assert "endpoint Broken.call" in _refusal(GraphError, Graph(Broken))


def test_a_plugin_can_refuse_a_plan() -> None:
    with pytest.raises(ConfigError) as caught:
        _compile(Graph(Api), PAIR, registry=paper_registry(Objector()))
    assert caught.value.message.startswith(
        "a plugin refuses this plan: 3 services are too many (plugin 'Objector'"
    )


def test_all_that_is_wrong_is_said_at_once() -> None:
    """What stands in the file, what does not fit together, what there is no room for, what plugins say."""
    wrong = ["services.Decode.args.block_size=16", "services.Nobody.gpus=1", "router.args.x=1"]
    with pytest.raises(ConfigError) as caught:
        _compile(Graph(Api), PAIR, *wrong, registry=paper_registry(Objector()))
    said = caught.value.message.splitlines()
    assert said[0] == "4 problems:"
    for line, part in zip(
        said[1:],
        ("Nobody", "router.args", "between different block sizes", "a plugin refuses this plan: 3 services"),
        strict=True,
    ):
        assert part in line
    with pytest.raises(ConfigError) as caught:
        _compile(Graph(Api), PAIR, *wrong, "services.Prefill.gpus=4", num_gpus=1, registry=paper_registry())
    assert "the services need 4 GPUs" in caught.value.message.splitlines()[-1]


def test_nothing_is_said_of_what_follows_from_a_name_that_is_not_there() -> None:
    wrong = ["services.Decode.engine=papyrsu", "services.Nobody.gpus=1"]
    with pytest.raises(ConfigError) as caught:
        _compile(Graph(Api), PAIR, *wrong, registry=paper_registry(Objector()))
    assert caught.value.message.startswith("2 problems:")
    assert "too many" not in caught.value.message


def test_a_plan_is_data() -> None:
    plan = _compile(Graph(Everything), TWO_MODELS)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=DeploymentPlan) == plan
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=DeploymentPlan) == plan


_OVERRIDES = st.lists(
    st.sampled_from(
        [
            "services.Prefill.replicas=3",
            "services.Decode.gpus=1",
            "services.Prefill.gpus=2",
            "services.Decode.engine=papyrus",
            "services.Decode.engine=stone",
            "services.Decode.args.block_size=16",
            "services.Prefill.args.block_size=16",
            "services.Nobody.gpus=1",
            "router=random",
            "router.args.x=1",
            "kv.connector=pigeon",
            "model.path=./x",
            "planner=wise",
        ]
    ),
    max_size=6,
)


@given(_OVERRIDES, st.integers(0, 8))
def test_equal_input_gives_equal_bytes_or_equal_words(overrides: list[str], num_gpus: int) -> None:
    def outcome() -> bytes:
        try:
            plan = _compile(Graph(Api), PAIR, *overrides, num_gpus=num_gpus, registry=paper_registry())
        except (ConfigError, GraphError) as error:
            return error.message.encode()
        given_out = [gpu for part in plan.services for replica in part.replicas for gpu in replica.gpu_ids]
        assert len(given_out) == len(set(given_out)) <= num_gpus
        return msgspec.json.encode(plan)

    assert outcome() == outcome()
