from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dynamo_sdk.transfer import BlockServer
from dynamo_sdk.transfer.address import TcpAddress, UnixAddress, listen, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a:b", UnixAddress("/run/a:b")),
        ("tcp:10.0.0.1:7000", TcpAddress("10.0.0.1", 7000)),
        ("tcp:[::1]:0", TcpAddress("::1", 0)),
    ],
)
def test_addresses_survive(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "unix:", "tcp:", "tcp:host", "tcp:host:x", "http://host:1", "host:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="unix:/path or tcp:host:port"):
        parse_address(text)


def test_a_socket_file_is_private_and_replaces_a_dead_one(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    listen(address).close()  # as a killed process would leave it
    with listen(address):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError, match="in use"):
            listen(address)


def test_nothing_but_a_dead_socket_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="in use"):
        listen(UnixAddress(str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.anyio
async def test_all_interfaces_need_a_name_for_others() -> None:
    server = BlockServer()
    with pytest.raises(ValueError, match="advertise_host"):
        await server.start(["tcp:0.0.0.0:0"])
    await server.start(["tcp:0.0.0.0:0"], advertise_host="worker-7")
    assert server.addresses[0].startswith("tcp:worker-7:")
    await server.close()
    await server.close()


@pytest.mark.anyio
async def test_a_start_that_fails_leaves_no_listener(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = BlockServer()
        with pytest.raises(OSError, match="in use"):
            await server.start([f"unix:{tmp_path}/s", f"tcp:127.0.0.1:{taken.getsockname()[1]}"])
    assert not (tmp_path / "s").exists()
    await server.close()
