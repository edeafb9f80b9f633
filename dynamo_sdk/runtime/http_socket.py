"""The listening socket of one frontend, from what its launcher passed on.

One frontend alone inherits a socket that listens: connections made while it restarts wait in there. Several
each get a socket of their own on the same port (``SO_REUSEPORT``), and the kernel deals connections out by
the hash of their addresses. One socket for all would not do: whoever wakes up first takes what is there, and
between two idle processes that is nearly always the same one. It also would keep a dead frontend's share.
"""

from __future__ import annotations

import socket

BACKLOG = 2048


def open_http_socket(inherited: int, replica: int) -> int:
    """The descriptor of the socket that this replica listens on; ``inherited`` is it, or is closed.

    The first replica takes what it inherits if that listens. Raises ``OSError``.
    """
    address = socket.socket(fileno=inherited)
    if replica == 0 and address.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return address.detach()
    with address, socket.socket(address.family, socket.SOCK_STREAM) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        own.bind(address.getsockname())
        own.listen(BACKLOG)
        own.setblocking(False)
        return own.detach()
