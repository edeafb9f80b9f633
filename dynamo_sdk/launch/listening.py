"""Addresses: where HTTP listens, where a joined worker listens, and what needs a shared secret."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import LaunchOptions
from dynamo_sdk.runtime.http_socket import BACKLOG
from dynamo_sdk.runtime.network import is_loopback, parse_address
from dynamo_sdk.types.plan import ServicePlan

WILDCARDS = ("0.0.0.0", "::")


def http_socket_of(services: Sequence[ServicePlan], options: LaunchOptions) -> socket.socket | None:
    """What the frontends among ``services`` inherit, None without any. Raises ``ConfigError``."""
    frontends = [service for service in services if service.is_frontend]
    num_replicas = sum(len(service.replicas) for service in frontends)
    return bind_http(options.host, options.port, is_shared=num_replicas != 1) if frontends else None


def idle_frontends(services: Sequence[ServicePlan]) -> str | None:
    """A sentence about frontends that are planned without a replica, where no other frontend runs."""
    frontends = [service for service in services if service.is_frontend]
    if not frontends or any(service.replicas for service in frontends):
        return None
    names = ", ".join(f"services.{service.name}.replicas" for service in frontends)
    return f"nobody answers HTTP here: {names} is 0"


def bind_http(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A listening socket, ready to be inherited. A shared one does not listen: it keeps the port, on which
    each frontend opens a socket of its own. Raises ``ConfigError`` saying what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        listener.bind((host, port))  # before the next line, so that a port in use is refused
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if not is_shared:
            listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; try another --port (0 = any)"
        ) from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """The URL under the name that the user gave the host."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reachable(address: str) -> str:
    """``address`` as others can name it: a wildcard becomes this host's name."""
    _, host, port = parse_address(address)
    return f"tcp:{socket.gethostname()}:{port}" if host in WILDCARDS else address


def check_join(address: str, secret: str | None) -> None:
    """Raises ``ConfigError`` for an address that cannot be one, or that nobody guards."""
    if not is_loopback(address) and secret is None:
        raise ConfigError(
            f"--join {address} leaves this host, so both sides need a shared secret: "
            "set DYNAMO_SDK_SECRET, or pass --secret-file, here and there"
        )


def join_listen_address(registry: str) -> str:
    """Where a replica that joins ``registry`` listens: on the interface that leads there, any port."""
    kind, host, port = parse_address(registry)
    if kind == "unix":
        return "tcp:127.0.0.1:0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        try:
            probe.connect((host, port))
        except OSError as error:
            raise ConfigError(f"no route to {host}, which --join names: {error.strerror}") from error
        return f"tcp:{probe.getsockname()[0]}:0"
