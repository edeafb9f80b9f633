"""The sockets of several frontends on one port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dynamo_sdk.launch.listening import bind_http
from dynamo_sdk.runtime.http_socket import open_http_socket


@contextmanager
def opened(inherited: socket.socket, replica: int) -> Iterator[socket.socket]:
    with socket.socket(fileno=open_http_socket(inherited.dup().detach(), replica)) as listener:
        yield listener


def num_waiting(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def connect(listening: socket.socket, count: int) -> None:
    for _ in range(count):
        socket.create_connection(listening.getsockname()[:2]).close()


def test_one_frontend_takes_the_socket_that_listens_before_it_is_there() -> None:
    with bind_http("127.0.0.1", 0) as inherited:
        connect(inherited, 3)
        with opened(inherited, 0) as listener:
            assert num_waiting(listener) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_several_frontends_share_what_arrives_at_one_port(host: str) -> None:
    with bind_http(host, 0, is_shared=True) as port:
        with opened(port, 0) as first, opened(port, 1) as second:
            assert first.getsockname() == second.getsockname() == port.getsockname()
            connect(port, 64)
            counts = num_waiting(first), num_waiting(second)
            assert sum(counts) == 64
            assert min(counts) >= 8  # one in ten thousand million runs has less


def test_what_is_left_of_the_frontends_gets_all() -> None:
    with bind_http("127.0.0.1", 0, is_shared=True) as port:
        with opened(port, 1) as left:
            with opened(port, 0):
                pass
            connect(port, 16)
            assert num_waiting(left) == 16
        with pytest.raises(ConnectionRefusedError):
            connect(port, 1)


def test_a_frontend_that_is_added_later_shares_with_the_first() -> None:
    with bind_http("127.0.0.1", 0) as inherited:
        with opened(inherited, 0) as first, opened(inherited, 1) as second:
            connect(inherited, 64)
            counts = num_waiting(first), num_waiting(second)
            assert sum(counts) == 64
            assert min(counts) >= 8
