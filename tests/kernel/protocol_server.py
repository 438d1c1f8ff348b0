"""A protocol that listens, with a small application behind it, and clients with raw sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import orjson
import uvloop
from uvicorn.server import ServerState

from app.kernel.server.process import Config
from app.kernel.server.protocol import GuardedProtocol
from app.kernel.settings import ConnectionSettings
from tests.fixtures.waiting import scaled

HOST = b"Host: onehop.example\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the method, path, and body of the request; `/big` with more than any buffer takes, `/early`
    without waiting for a body, `/stream` in three parts without a length, of which `/broken` lacks the last one.
    """
    body = b""
    more = scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    assert [value for name, value in scope["headers"] if name == b"host"] in ([b"onehop.example"], [])
    if scope["path"] in {"/stream", "/broken"}:
        # A proxied answer may name the coding of another connection.
        coding = [(b"transfer-encoding", b"chunked")] if scope["query_string"] else []
        await send({"type": "http.response.start", "status": 200, "headers": coding})
        for part in (b"one,", b"two,"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if scope["path"] == "/broken":
            raise RuntimeError("the rest is missing")
        await send({"type": "http.response.body", "body": b"three"})
        return
    text = f"{scope['method']} {scope['path']} ".encode() + body
    if scope["path"] == "/big":
        text = bytes(32 * 1024 * 1024)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


class Served:
    """A listening protocol in a loop of its own."""

    def __init__(self, application: Any = echo, **limits: Any) -> None:
        self._config = Config(
            "unused:unused", connections=ConnectionSettings(**limits), grace=1, interface="asgi3", log_config=None
        )
        self._config.loaded, self._config.loaded_app, self._config.ws_protocol_class = True, application, None
        self._ready = threading.Event()
        self._stop: Callable[[], Any] = lambda: None
        self.state = ServerState()
        self.port = 0

    def connections(self) -> list[Any]:
        """The protocols of all open connections, whose loop is in another thread."""
        return list(self.state.connections)

    @contextmanager
    def running(self) -> Iterator["Served"]:
        thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        thread.start()
        assert self._ready.wait(scaled(5))
        try:
            yield self
        finally:
            self._stop()
            thread.join()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        listener = await loop.create_server(lambda: GuardedProtocol(self._config, self.state, {}), "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await stopped.wait()
        listener.close()
        for connection in tuple(self.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(5)
        return connection

    def exchange(self, *parts: bytes) -> bytes:
        """All that comes back until the server closes, or has been silent for a moment after the last part."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                if len(parts) > 1:
                    threading.Event().wait(0.02)
            return read(connection)


def read(connection: socket.socket, *, first: float = scaled(5), silence: float = 0.24) -> bytes:
    connection.settimeout(first)
    received = b""
    # One of the silences may be that of a machine that stood still.
    silences = 0
    while silences < 3:
        try:
            # The first part of an answer may take its time on a busy machine.
            chunk = connection.recv(65536)
        except TimeoutError:
            silences += 1
        else:
            if not chunk:
                return received
            received += chunk
            silences = 0
        connection.settimeout(silence / 3)
    return received + b"(open)"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + scaled(20)
    while not condition():
        assert monotonic() < deadline
        threading.Event().wait(0.005)


def refused(answer: bytes, status: int, code: str) -> None:
    """The answer is one problem, whole, and the connection is closed behind it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), answer[:300]
    assert b"connection: close" in lines
    assert b"content-type: application/problem+json" in lines
    problem = orjson.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert f"x-request-id: {problem['request_id']}".encode() in lines
    assert len(body) == int(next(line for line in lines if line.startswith(b"content-length"))[16:])


def request(line: bytes = b"GET /a", *fields: bytes, body: bytes = b"", host: bytes = HOST) -> bytes:
    return line + b" HTTP/1.1\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def answers(received: bytes) -> list[bytes]:
    """The bodies of successful answers, in their order."""
    return [part.split(b"\r\n\r\n", 1)[1] for part in received.split(b"HTTP/1.1 200 OK\r\n")[1:]]


POST = b"POST /a"
CHUNKED = b"Transfer-Encoding: chunked"
