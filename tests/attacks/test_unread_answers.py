"""Unread responses take a bounded part of the memory, and that of the client who keeps most of it."""

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack
from typing import Any, cast

from app.kernel.server.response_cycle import _SHARED_BYTES, _write_whole
from tests.fixtures.waiting import scaled
from tests.kernel.protocol_server import Served, request, wait_until

MEBIBYTE = 1024 * 1024


def unread(stack: ExitStack, served: Served, host: str) -> socket.socket:
    """A client at this address that asks for the large answer and reads nothing but its first byte."""
    connection = socket.create_connection(("127.0.0.1", served.port), source_address=(host, 0))
    stack.enter_context(connection)
    connection.settimeout(scaled(20))
    connection.sendall(request(b"GET /big"))
    assert connection.recv(1) == b"H"
    return connection


def kept_by(served: Served) -> Counter[str]:
    """Clients of the connections whose answers wait."""
    return Counter(connection.host for connection in served.connections() if connection.unsent)


def test_the_client_that_keeps_most_is_ended_first() -> None:
    with Served(max_unsent_bytes=80 * MEBIBYTE).running() as served, ExitStack() as stack:
        unread(stack, served, "127.0.0.2")
        wait_until(lambda: kept_by(served) == {"127.0.0.2": 1})
        for _ in range(5):
            unread(stack, served, "127.0.0.3")
        # Each has 32 MiB, less what the system keeps.
        wait_until(lambda: kept_by(served) == {"127.0.0.2": 1, "127.0.0.3": 1})
        assert sum(connection.unsent for connection in served.connections()) <= 80 * MEBIBYTE


def test_what_fits_stays() -> None:
    with Served(max_unsent_bytes=80 * MEBIBYTE).running() as served, ExitStack() as stack:
        clients = [unread(stack, served, host) for host in ("127.0.0.2", "127.0.0.3")]
        wait_until(lambda: len(kept_by(served)) == 2)
        for client in clients:
            received = 0
            while received < 32 * MEBIBYTE:
                received += len(client.recv(MEBIBYTE))


class Written:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)


def test_a_long_answer_is_not_copied_for_each_client() -> None:
    body: Any = bytes(_SHARED_BYTES)
    first, second = Written(), Written()
    for transport in (first, second):
        _write_whole(cast("asyncio.Transport", transport), b"head", body)
    assert first.parts[1] is second.parts[1] is body
    short = Written()
    _write_whole(cast("asyncio.Transport", short), b"head", b"body")
    assert short.parts == [b"headbody"]
