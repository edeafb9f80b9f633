"""Tickets: issued, counted down, refused."""

from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.errors import TicketExpired, TicketUnknown
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import check_kv_connector
from dynamo_sdk.types import KVTransferParams, Role
from dynamo_sdk_vllm import plugin
from dynamo_sdk_vllm.handover import CONNECTOR, TicketDesk, VllmNixlConnector, issue_ticket

PARAMS = {
    "do_remote_prefill": True,
    "remote_block_ids": [[2, 3, 4]],
    "remote_engine_id": "e",
    "remote_request_id": "r-1",
    "remote_num_tokens": 80,
    "remote_port": 5600,
    "remote_blocks_expiry_time": None,
}
ISSUED_S = 1_000_000.0


def ticket(request_id: str = "r-1", *, at_s: float = ISSUED_S, lease_s: float = 30.0) -> KVTransferParams:
    return issue_ticket(PARAMS | {"remote_request_id": request_id}, lease_s=lease_s, now_s=at_s)


def test_what_vllm_said_arrives_as_it_was():
    redeemed = TicketDesk().redeem(ticket(), num_tokens=80, now_s=ISSUED_S + 1)
    assert redeemed == PARAMS


def test_the_deadline_leaves_a_third_of_the_lease():
    issued = ticket(lease_s=30.0)
    assert issued.ttl_s == pytest.approx(20)
    TicketDesk().redeem(issued, num_tokens=80, now_s=ISSUED_S + 19.9)
    with pytest.raises(TicketExpired, match=r"ran out 1\.0 s ago"):
        TicketDesk().redeem(issued, num_tokens=80, now_s=ISSUED_S + 21)


def test_time_that_the_flow_has_counted_down_is_over():
    late = msgspec.structs.replace(ticket(), ttl_s=0.0)
    with pytest.raises(TicketExpired):
        TicketDesk().redeem(late, num_tokens=80, now_s=ISSUED_S)


def test_a_ticket_is_used_once_and_remembered_while_it_is_good():
    desk = TicketDesk()
    desk.redeem(ticket(), num_tokens=80, now_s=ISSUED_S)
    for number in range(100):
        at_s = ISSUED_S + number / 10
        desk.redeem(ticket(f"r-{number + 2}", at_s=at_s), num_tokens=80, now_s=at_s)
    with pytest.raises(TicketUnknown, match="used before"):
        desk.redeem(ticket(), num_tokens=80, now_s=ISSUED_S + 15)


def test_what_has_run_out_is_forgotten():
    desk = TicketDesk()
    for number in range(1000):
        at_s = ISSUED_S + number
        desk.redeem(ticket(f"r-{number}", at_s=at_s), num_tokens=80, now_s=at_s)
    assert len(desk._spent) <= 21


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (KVTransferParams(connector="direct", payload=b""), "direct"),
        (KVTransferParams(connector=CONNECTOR, payload=b"\xc1"), "cannot be read"),
        (ticket(), "80 tokens, the request has 81"),
    ],
)
def test_other_tickets_are_unknown(given: KVTransferParams, message: str):
    with pytest.raises(TicketUnknown, match=message):
        TicketDesk().redeem(given, num_tokens=81, now_s=ISSUED_S)


def test_the_connector_keeps_the_contract_and_is_found():
    registry = Registry.of(plugin)
    assert registry.problems == ()
    assert isinstance(registry.build_kv_connector(CONNECTOR), VllmNixlConnector)
    assert registry.engines["vllm"].connectors == (CONNECTOR,)
    check_kv_connector(VllmNixlConnector, name=CONNECTOR, answer=lambda request: ticket()).raise_if_failed()


def test_each_role_has_its_part():
    roles = {role: VllmNixlConnector().engine_args(role)["kv_role"] for role in (Role.PREFILL, Role.DECODE)}
    assert roles == {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}
