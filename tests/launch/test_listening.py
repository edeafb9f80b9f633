from __future__ import annotations

import socket

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.launch.listening import bind_http, check_join, join_listen_address, reachable, url_of
from dynamo_sdk.runtime.http_socket import open_http_socket


def test_port_zero_takes_a_free_one_and_accepted_sockets_do_not_delay() -> None:
    with bind_http("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_port_of_another_graph_is_refused(is_shared: bool) -> None:
    with bind_http("127.0.0.1", 0, is_shared=is_shared) as listener:
        port = listener.getsockname()[1]
        with socket.socket(fileno=open_http_socket(listener.dup().detach(), 0)):
            for wish in (False, True):
                with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
                    bind_http("127.0.0.1", port, is_shared=wish)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.77"])
def test_a_host_that_is_not_ours_says_so(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: .*; try another"):
        bind_http(host, 0)


def test_off_loopback_a_secret_is_needed() -> None:
    check_join("tcp:127.0.0.1:99", None)
    check_join("unix:/tmp/x", None)
    check_join("tcp:10.1.2.3:99", "sesame")
    with pytest.raises(ConfigError, match="shared secret"):
        check_join("tcp:10.1.2.3:99", None)


def test_a_joined_worker_listens_where_the_registry_can_be_reached() -> None:
    assert join_listen_address("tcp:127.0.0.1:4711") == "tcp:127.0.0.1:0"
    assert join_listen_address("unix:/tmp/registry.sock") == "tcp:127.0.0.1:0"


def test_a_wildcard_is_shown_under_a_name_that_others_can_use() -> None:
    assert reachable("tcp:0.0.0.0:99") == f"tcp:{socket.gethostname()}:99"
    assert reachable("tcp:127.0.0.1:99") == "tcp:127.0.0.1:99"
