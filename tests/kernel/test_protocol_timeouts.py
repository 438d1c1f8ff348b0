"""Clients that are silent, slow or idle, by raw sockets against the protocol."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.fixtures.waiting import scaled
from tests.kernel.protocol_server import POST, Served, answers, read, refused, request, wait_until


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """With times that a test can wait for."""
    limits = {"head_timeout": 0.6, "body_timeout": 0.9, "write_timeout": 0.6, "idle_timeout": 1.2, "min_rate": 1000}
    with Served(**limits).running() as running:
        yield running


def test_clients_that_take_too_long(impatient: Served) -> None:
    """All at once, because each one takes its time."""
    silent = impatient.connect()
    half_a_head = impatient.connect()
    half_a_head.sendall(b"GET /a HTTP/1.1\r\nHo")
    dribbling = impatient.connect()
    half_a_body = impatient.connect()
    half_a_body.sendall(request(POST, b"Content-Length: 100000", body=b"a" * 5000))
    slow_body = impatient.connect()
    slow_body.sendall(request(POST, b"Content-Length: 100000", body=b"a"))
    unread = impatient.connect()
    unread.sendall(request(b"GET /big"))
    idle = impatient.connect()
    idle.sendall(request())
    ended = threading.Thread(target=dribble, args=(dribbling, b"GET /a HTTP/1.1\r\nX: " + b"a" * 1000))
    ended.start()
    # A client that has sent nothing gets no response.
    timeout = scaled(20)
    assert read(silent, first=timeout) == b""
    assert answers(read(idle, first=timeout, silence=timeout)) == [b"GET /a "]
    for connection in (half_a_head, dribbling, slow_body, half_a_body):
        refused(read(connection, first=timeout, silence=timeout), 408, "request_timeout")
        connection.close()
    # It was cut off: the answer ends before its end.
    wait_until(lambda: not impatient.state.connections)
    received = 0
    with suppress(ConnectionResetError):
        while chunk := unread.recv(1 << 20):
            received += len(chunk)
    assert received < 32 * 1024 * 1024
    ended.join()
    for connection in (silent, unread, idle):
        connection.close()


def test_a_body_behind_its_answer() -> None:
    with Served(body_timeout=0.6).running() as served, served.connect() as whole, served.connect() as endless:
        for connection in (whole, endless):
            connection.sendall(request(b"POST /early", b"Content-Length: 4", body=b"a"))
            assert connection.recv(1000).endswith(b"\r\n\r\nPOST /early ")
        whole.sendall(b"bcd")
        assert read(endless, silence=5) == b""
        # A client that has sent all of it is not asked for more bytes.
        threading.Event().wait(0.6)
        whole.sendall(request())
        assert answers(read(whole)) == [b"GET /a (open)"]


def dribble(connection: socket.socket, text: bytes) -> None:
    """Byte by byte, until the other side has had enough."""
    for place in range(len(text)):
        try:
            connection.send(text[place : place + 1])
        except OSError:
            return
        threading.Event().wait(0.05)


def test_a_slow_reader_that_reads_gets_all(impatient: Served) -> None:
    # A client that stands still for longer than the time-out is cut off: a machine may do so once.
    assert any(read_slowly(impatient) > 32 * 1024 * 1024 for _ in range(3))


def read_slowly(served: Served) -> int:
    """How many bytes of the large answer came."""
    received = 0
    with served.connect() as connection, suppress(ConnectionResetError):
        connection.sendall(request(b"GET /big"))
        while chunk := connection.recv(256 * 1024):
            received += len(chunk)
            if received > 32 * 1024 * 1024:
                break
            threading.Event().wait(0.008)
    return received


def test_who_is_idle_makes_room() -> None:
    with Served(max_connections=5).running() as served:
        idle = [served.connect() for _ in range(4)]
        for connection in idle:
            connection.sendall(request())
            assert connection.recv(1000)
        busy = served.connect()
        busy.sendall(request(POST, b"Content-Length: 1"))
        late = served.connect()
        late.sendall(request())
        assert late.recv(1000).startswith(b"HTTP/1.1 200 OK")
        closed = [connection for connection in idle if read(connection, first=0.1) == b""]
        assert len(closed) == 1
        for connection in idle:
            if connection not in closed:
                connection.sendall(request(POST, b"Content-Length: 1"))
        late.sendall(request(POST, b"Content-Length: 1"))
        # All of them are being worked on.
        wait_until(
            lambda: [one.cycle is None or one.cycle.response_complete for one in served.connections()] == [False] * 5
        )
        refused(served.exchange(request()), 503, "too_many_connections")
        busy.sendall(b"a")
        assert answers(read(busy)) == [b"POST /a a(open)"]
        for connection in (*idle, busy, late):
            connection.close()
