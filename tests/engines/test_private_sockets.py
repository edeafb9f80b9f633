"""Sockets between an engine's own processes and its worker."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import zmq

from dynamo_sdk.engines.private_sockets import free_ports, make_private_folder, private_endpoints


@pytest.mark.parametrize("depth", [0, 20])
def test_a_socket_can_be_made_however_deep_the_temporary_folder_is(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["folder"] * depth)
    deep.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = make_private_folder("test")
    try:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        endpoints = [private_endpoints(folder, rank) for rank in range(2)]
        names = {name for end in endpoints for name in (end.publisher, end.replay)}
        assert len(names) == 4
        with zmq.Context() as context:
            for name in names:
                with context.socket(zmq.PUB) as publisher:
                    publisher.bind(str(name))
    finally:
        shutil.rmtree(folder)


def test_ports_in_a_row_are_free() -> None:
    first = free_ports("127.0.0.1", 3)
    for number in range(3):
        with socket.create_server(("127.0.0.1", first + number)):
            pass
