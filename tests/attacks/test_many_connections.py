"""A client that opens as many connections as the server takes keeps no other from one."""

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from app.kernel.fairness.ticket import Overloaded
from app.kernel.http.prepared_problem import PreparedProblem, Refused
from app.kernel.server.refusal_queue import RefusalQueue
from tests.fixtures.waiting import scaled
from tests.kernel.protocol_server import Served, echo, read, refused, request, wait_until

MOST = 20
POST = b"POST /a"


def connect(stack: ExitStack, served: Served, host: str, first: bytes = b"") -> socket.socket:
    connection = stack.enter_context(
        socket.create_connection(("127.0.0.1", served.port), timeout=scaled(20), source_address=(host, 0))
    )
    connection.sendall(first)
    return connection


def open_of(served: Served) -> Counter[str | None]:
    """Connections by client, but for those that are about to end."""
    return Counter(connection.host for connection in served.connections() if connection.waits_for_client)


@pytest.mark.parametrize(
    "first",
    [b"", b"G", request(POST, b"Content-Length: 9"), request(POST, b"Content-Length: 9") + b"a"],
    ids=["nothing", "head", "no body", "body"],
)
def test_others_find_a_connection(first: bytes) -> None:
    with Served(max_connections=MOST).running() as served, ExitStack() as stack:
        known = connect(stack, served, "127.0.0.4", request())
        assert known.recv(1000).startswith(b"HTTP/1.1 200 OK")
        for _ in range(MOST - 1):
            connect(stack, served, "127.0.0.2", first)
        wait_until(lambda: open_of(served) == {"127.0.0.2": MOST - 1, "127.0.0.4": 1})
        # What comes beyond takes a connection from no other client, however long others are idle.
        for _ in range(3):
            beyond = connect(stack, served, "127.0.0.2", request())
            if first:
                refused(read(beyond), 503, "too_many_connections")
            else:
                assert beyond.recv(1000).startswith(b"HTTP/1.1 200 OK")
        for number in range(1, 4):
            other = connect(stack, served, "127.0.0.3", request())
            assert other.recv(1000).startswith(b"HTTP/1.1 200 OK")
            wait_until(lambda: open_of(served)["127.0.0.3"] == number)  # noqa: B023 - at once
        known.sendall(request())
        assert known.recv(1000).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: open_of(served).total() <= MOST)


def test_clients_with_about_as_many_take_none_from_each_other() -> None:
    with Served(max_connections=MOST).running() as served, ExitStack() as stack:
        for host, number in (("127.0.0.2", 12), ("127.0.0.3", 8)):
            for _ in range(number):
                connect(stack, served, host, b"G")
        wait_until(lambda: open_of(served) == {"127.0.0.2": 12, "127.0.0.3": 8})
        for host in ("127.0.0.2", "127.0.0.3"):
            refused(read(connect(stack, served, host, request())), 503, "too_many_connections")


def test_idle_ones_of_the_largest_client_end_first() -> None:
    with Served(max_connections=MOST).running() as served, ExitStack() as stack:
        busy = [connect(stack, served, "127.0.0.2", request(POST, b"Content-Length: 1")) for _ in range(MOST - 2)]
        idle = [connect(stack, served, "127.0.0.2", request()) for _ in range(2)]
        for connection in idle:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: open_of(served) == {"127.0.0.2": MOST})
        for number in (1, 2):
            other = connect(stack, served, "127.0.0.3", request())
            assert other.recv(1000).startswith(b"HTTP/1.1 200 OK")
            wait_until(lambda: open_of(served)["127.0.0.3"] == number)  # noqa: B023 - at once
        assert [connection.recv(1000) for connection in idle] == [b"", b""]
        for connection in busy:
            connection.sendall(b"a")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


class Refusing:
    """An application that has no slot for a request."""

    oauth_paths = ()

    def __init__(self) -> None:
        self.edge = self

    def decide(self, scope: Any) -> Refused | None:
        return Refused(PreparedProblem(Overloaded(), ()), b"id", 1) if scope["path"] == "/refused" else None

    def repeatable(self, _: Any) -> None:
        """Nothing is answered before it gets a task."""

    def answer(self, _: Any) -> None:
        """As above."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)


def test_those_that_wait_for_a_refusal_are_none_that_are_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy process sends few of them a second."""
    monkeypatch.setattr(RefusalQueue, "_send_some", lambda _: None)
    with Served(Refusing(), max_connections=MOST).running() as served, ExitStack() as stack:
        for _ in range(MOST):
            connect(stack, served, "127.0.0.2", request(b"GET /refused"))
        wait_until(lambda: open_of(served) == {"127.0.0.2": MOST})
        wait_until(lambda: all(connection._active is not None for connection in served.connections()))
        other = connect(stack, served, "127.0.0.3", request())
        assert other.recv(1000).startswith(b"HTTP/1.1 200 OK")


async def test_refusals_go_out_by_turns_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Unanswered:
        def __init__(self, client: str) -> None:
            self.client = client

        def take(self, _: bytes) -> None:
            sent.append(self.client)

    queue = RefusalQueue(asyncio.get_running_loop())
    with monkeypatch.context() as patch:
        patch.setattr(RefusalQueue, "_send_some", lambda _: None)
        for client in [*["greedy"] * 100, "other", "other"]:
            queue.put(Unanswered(client), b"", client)
    queue._credit = 60.0
    queue._send_some()
    assert sent == ["greedy", "other", "greedy", "other", *["greedy"] * 98]
