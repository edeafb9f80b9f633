"""Arguments, requests, outputs, tickets and figures, without a process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from dynamo_sdk.errors import (
    ConfigError,
    DynamoError,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    TicketUnknown,
    TransferError,
)
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import check_kv_connector, generate_request
from dynamo_sdk.testing.streams import worker_record
from dynamo_sdk.types import FinishReason, KVTransferParams, LoraSpec, Role, SamplingParams
from dynamo_sdk_sglang import plugin
from dynamo_sdk_sglang.config import SglangConfig, defaults, server_arguments
from dynamo_sdk_sglang.gauges import Gauges
from dynamo_sdk_sglang.handover import Meeting, SglangConnector, read_meeting
from dynamo_sdk_sglang.host import fitting
from dynamo_sdk_sglang.hosted import cause_in
from dynamo_sdk_sglang.messages import Last, Output
from dynamo_sdk_sglang.steps import step_of
from dynamo_sdk_sglang.translate import ChunkMaker, abort_of, generate_arguments

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@dataclass
class ServerArgs:
    model_path: str
    page_size: int = 1
    log_level: str = "info"


def test_ours_go_to_versions_that_know_them_and_the_users_come_first():
    ours = {"model_path": "/m", "log_level": "warning", "newer_than_this": True}
    assert server_arguments(ServerArgs, {"log_level": "debug"}, ours) == {
        "model_path": "/m",
        "log_level": "debug",
    }
    with pytest.raises(ConfigError, match="did you mean 'page_size'"):
        server_arguments(ServerArgs, {"page_sise": 2}, {})


@pytest.mark.parametrize("name", SglangConfig.owned)
def test_what_is_ours_cannot_be_set(name: str):
    with pytest.raises(ValidationError, match=name):
        SglangConfig.model_validate({name: "x"})
    assert f"`{name}`" in README


def test_the_readme_shows_all_arguments():
    shown = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", README, re.MULTILINE))
    real = {
        name: str(field.get_default(call_default_factory=True))
        for name, field in SglangConfig.model_fields.items()
    }
    assert {name: shown[name].strip() for name in real} == real


def test_priorities_only_where_the_policy_knows_them():
    assert defaults(SglangConfig())["enable_priority_scheduling"] is True
    longest_prefix = SglangConfig.model_validate({"schedule_policy": "lpm"})
    assert "enable_priority_scheduling" not in defaults(longest_prefix)


def test_sglang_is_started_with_the_adapters_that_will_come():
    wanted = defaults(SglangConfig(), [LoraSpec(name="loud", path="/a")])
    assert wanted["lora_paths"] == ["loud=/a"]


def test_sampling_in_sglangs_words():
    sampling = SamplingParams(
        max_tokens=20,
        min_tokens=8,
        temperature=0.5,
        top_k=0,
        seed=2**64 - 1,
        logit_bias={5: 2.0},
        stop_token_ids=(9,),
        logprobs=3,
    )
    request = generate_request([1, 2], sampling, generated=[3, 4])
    arguments = generate_arguments(request, [1, 2, 3, 4], num_tokens_left=18, meeting=None)
    params = arguments["sampling_params"]
    assert (params["max_new_tokens"], params["min_new_tokens"], params["top_k"]) == (18, 6, -1)
    assert params["sampling_seed"] == 2**63 - 1
    assert params["logit_bias"] == {"5": 2.0}
    assert params["stop_token_ids"] == [9]
    assert (arguments["return_logprob"], arguments["top_logprobs_num"]) == (True, 3)
    assert "bootstrap_room" not in arguments
    seeded = generate_arguments(request, [1], num_tokens_left=18, meeting=None, seeded_vocab_size=90)
    assert seeded["sampling_params"]["top_k"] == 90, "or chances would depend on who else is in the batch"
    narrow = generate_request([1], replace(sampling, min_p=0.5))
    with pytest.raises(InvalidRequest, match="min_p"):  # SGLang's scheduler ends of it
        generate_arguments(narrow, [1], num_tokens_left=18, meeting=None, seeded_vocab_size=90)
    greedy = generate_request([1], replace(sampling, temperature=0.0))
    assert (
        "sampling_seed"
        not in generate_arguments(greedy, [1], num_tokens_left=20, meeting=None)["sampling_params"]
    )


def test_a_leg_goes_with_its_meeting():
    meeting = Meeting("10.0.0.1", 5000, 77, 3)
    arguments = generate_arguments(generate_request(), [1], num_tokens_left=1, meeting=meeting)
    assert arguments["bootstrap_host"] == "10.0.0.1"
    assert (arguments["bootstrap_port"], arguments["bootstrap_room"]) == (5000, 77)
    assert arguments["disagg_prefill_dp_rank"] == 3


def test_names_of_arguments_by_version():
    given = {"input_ids": [1], "routed_dp_rank": 1, "priority": 0}
    assert fitting(given, {"input_ids", "routed_dp_rank", "priority"}) == given
    assert fitting(given, {"input_ids", "data_parallel_rank"}) == {"input_ids": [1], "data_parallel_rank": 1}
    with pytest.raises(ValueError, match="cache_salt"):
        fitting({"cache_salt": "x"}, {"input_ids"})


def last(kind: str = "length", **more: object) -> Last:
    return Last({"type": kind, **more}, received_s=1.0, scheduled_s=1.5, first_token_s=2.5, finished_s=4.0)


def test_chunks_of_a_leg():
    maker = ChunkMaker(generate_request([1, 2], SamplingParams(max_tokens=9, logprobs=1)), is_handover=False)
    first = maker.chunk(
        Output(0, [5, 6], logprobs=[(-1.0, 5, None), (-2.0, 6, None)], top=[[(-0.5, 7, None)], []])
    )
    assert first is not None
    assert first.logprobs is not None
    assert [entry.logprob for entry in first.logprobs] == [-1.0, -2.0]
    assert first.logprobs[0].top == ((7, -0.5),)
    assert maker.chunk(Output(0, [], logprobs=[])) is None
    end = maker.chunk(Output(0, [8], 1, [(-3.0, 8, None)], None, last("stop", matched=8)))
    assert end is not None
    assert end.finish_reason is FinishReason.STOP
    assert end.usage is not None
    assert (end.usage.num_output_tokens, end.usage.num_cached_tokens) == (3, 1)
    assert end.timing is not None
    assert (end.timing.queue_s, end.timing.prefill_s, end.timing.decode_s) == (0.5, 1.0, 1.5)
    assert maker.is_over
    with pytest.raises(EngineFailed, match="logprobs"):
        ChunkMaker(generate_request([1], SamplingParams(max_tokens=9, logprobs=0)), is_handover=False).chunk(
            Output(0, [5])
        )


@pytest.mark.parametrize(
    ("status", "is_leg", "kind"),
    [
        (400, False, InvalidRequest),
        (503, True, Overloaded),
        (500, True, TransferError),
        (500, False, EngineFailed),
        (None, False, EngineFailed),
    ],
)
def test_why_sglang_aborts(status: int | None, *, is_leg: bool, kind: type[DynamoError]):
    error = abort_of({"type": "abort", "message": "because", "status_code": status}, is_leg=is_leg)
    assert type(error) is kind
    assert "because" in str(error)


def test_the_connector_keeps_its_contract():
    registry = Registry.of(plugin)
    report = check_kv_connector(lambda: registry.build_kv_connector("sglang"), name="sglang")
    report.raise_if_failed()
    assert "rendezvous_pairs_the_legs" not in {result.name for result in report.skipped}


def test_both_legs_have_one_ticket_with_prefills_rank():
    connector = SglangConnector()
    prefill = worker_record("p", Role.PREFILL, handover_address="host:123")
    leg = replace(generate_request(role=Role.PREFILL), dp_rank=2)
    ticket = connector.prefill_ticket(leg, prefill, None)
    other = replace(leg, role=Role.DECODE, dp_rank=0)
    assert connector.decode_ticket(other, prefill, ticket) == ticket
    meeting = read_meeting(ticket)
    assert (meeting.host, meeting.port, meeting.dp_rank) == ("host", 123, 2)
    retry = connector.prefill_ticket(replace(leg, request_id=f"{leg.request_id}.2"), prefill, None)
    assert read_meeting(retry).room != meeting.room
    with pytest.raises(TransferError, match="p does not say"):
        connector.prefill_ticket(leg, worker_record("p", Role.PREFILL, handover_address=None), None)
    with pytest.raises(TransferError):
        connector.decode_ticket(other, prefill, None)


@pytest.mark.parametrize(("connector", "payload"), [("vllm-nixl", b""), ("sglang", b"\xff")])
def test_strange_tickets(connector: str, payload: bytes):
    with pytest.raises(TicketUnknown):
        read_meeting(KVTransferParams(connector=connector, payload=payload))


def test_a_step_as_sglang_says_it():
    gauges = Gauges()
    gauges.begin(num_blocks=10, block_size=16)
    step = {
        "version": 1,
        "worker_id": "",
        "dp_rank": 0,
        "counter_id": 4,
        "wall_time": 0.25,
        "scheduled_requests": {
            "num_prefill_requests": 1,
            "sum_prefill_tokens": 30,
            "var_prefill_length": 0.0,
        },
        "queued_requests": {"num_prefill_requests": 2, "sum_prefill_tokens": 50},
    }
    said = step_of([b"", b"", msgspec.msgpack.encode(step)])
    assert said is not None
    read = gauges.read(said, 7.0)
    assert (read.step, read.wall_s, read.num_prefill_tokens, read.num_waiting) == (1, 0.25, 30, 2)
    idle = step_of([b"", b"", msgspec.msgpack.encode({**step, "scheduled_requests": {}})])
    assert idle is not None
    assert idle.is_idle
    assert step_of([b"nonsense"]) is None


def test_blocks_in_use_count_while_something_runs():
    gauges = Gauges()
    gauges.begin(num_blocks=10, block_size=16)
    gauges.enter(1, num_tokens=40)
    gauges.use(33)
    assert gauges.snapshot(0.0).num_free_blocks == 7
    assert gauges.snapshot(0.0).num_waiting_tokens == 40
    gauges.saw_token(1)
    assert (gauges.snapshot(0.0).num_running, gauges.snapshot(0.0).num_waiting) == (1, 0)
    gauges.leave(1)
    assert gauges.snapshot(0.0).num_free_blocks == 10


def test_the_cause_in_a_log():
    log = ["starting", "  File 'x'", "torch.cuda.OutOfMemoryError: no room", "[time] SIGQUIT received", ""]
    assert cause_in(log) == "torch.cuda.OutOfMemoryError: no room"
    assert cause_in(["one", "two", ""]) == "two"
    assert cause_in([]) == "it said nothing"
