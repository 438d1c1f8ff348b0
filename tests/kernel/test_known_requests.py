"""A head that came before is not parsed again, and nothing else is different for the client that sends it."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from uvicorn.server import ServerState

from app.kernel.server.connections import manager_of
from app.kernel.server.known_requests import KnownRequests
from app.kernel.server.process import Config
from app.kernel.server.protocol import GuardedProtocol
from app.kernel.settings import ConnectionSettings
from app.main import Onehop
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually, scaled

# What differs from answer to answer: the request's own id, of any length, the quota that is left, and the time.
_OWN = re.compile(
    rb"x-request-id: [^\r]*\r\n|date: [^\r]*\r\n|ratelimit[a-z-]*: [^\r]*\r\n|content-length: [^\r]*\r\n"
    rb'|urn:onehop:request:[^"]*|"request_id":"[^"]*"'
)
_LENGTH = re.compile(rb"content-length: (\d+)\r\n", re.IGNORECASE)


class Server:
    """The application behind the protocol, on a port of its own."""

    def __init__(self, app: Onehop, size: int | None, **limits: Any) -> None:
        connections = ConnectionSettings(**limits)
        self._config = Config("unused:unused", connections=connections, grace=1, interface="asgi3", log_config=None)
        self._config.loaded, self._config.loaded_app, self._config.ws_protocol_class = True, app, None
        self.state = ServerState()
        self.manager = manager_of(self.state, connections, asyncio.get_running_loop())
        self.known = self.manager.known_requests
        if size is not None:
            self.known = self.manager.known_requests = KnownRequests(size)
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: GuardedProtocol(self._config, self.state, {}), "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        yield self
        listener.close()
        for connection in tuple(self.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class Client:
    """One connection to a server, opened anew after the server has closed it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader: asyncio.StreamReader | None = None
        self._writer: Any = None

    async def send(self, *chunks: bytes, answers: int) -> list[bytes]:
        """So many answers; b"" where the server closed the connection instead. Each chunk is read by itself."""
        if self._reader is None or self._reader.at_eof():
            await self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        reader, writer = self._reader, self._writer
        for chunk in chunks:
            writer.write(chunk)
            if len(chunks) > 1:
                await asyncio.sleep(0.002)
        return [await asyncio.wait_for(_read(reader), scaled(10)) for _ in range(answers)]

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length is not None and b" 304 " not in head[:16] else b""
    if b"connection: close" in head.lower():
        body += await reader.read()
    return _OWN.sub(b"", head + body)


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(app: Onehop) -> AsyncIterator[Serve]:
    """Starts a server; `size` is how many requests it may know."""
    async with AsyncExitStack() as running:

        async def start(size: int | None = None, **limits: Any) -> Server:
            return await running.enter_async_context(Server(app, size, **limits).running())

        yield start


def head_of(person: Person, path: str = "/v1/overview", *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"GET %b HTTP/%b" % (path.encode(), version), b"host: localhost", *fields]
    return b"\r\n".join([*lines, b"authorization: %b" % person.headers["Authorization"].encode(), b"", b""])


@dataclass(frozen=True)
class Request:
    """What the application recognized, as far as it is looked at here."""

    token: bytes


class Counted(KnownRequests):
    """Counts the heads that were known."""

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        look_up = self.get

        def get(head: bytes) -> Any:
            request = look_up(head)
            self.hits += request is not None
            return request

        self.get = get  # type: ignore[assignment]


def _chunks(rng: random.Random, person: Person, etag: bytes) -> tuple[list[bytes], int]:
    """What a client may send next, as chunks, and how many answers it gets."""
    fields = [
        (),
        (b"accept-encoding: gzip",),
        (b"Accept-Encoding: gzip, br;q=0.5",),
        (b"if-none-match: " + etag,),
        (b'if-none-match: W/"another"',),
        (b"x-request-id: mine",),
        (b"user-agent: one", b"accept: */*"),
        (b"content-length: 0",),
        (b"connection: upgrade", b"upgrade: h2c"),
        (b'if-match: "another"',),
        (b"accept: a", b"accept: b"),
        (b"connection: keep-alive",),
    ]
    path = rng.choice(["/v1/overview", "/v1/overview", "/v1/users/me", "/v1/users/me?a=b", "/v1/%75sers/me", "/livez"])
    head = head_of(person, path, *rng.choice(fields))
    plain = head_of(person)
    cut, cut_of_plain = rng.randrange(1, len(head)), rng.randrange(1, len(plain))
    post = b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    choices = [
        ([head], 1),
        ([head + plain], 2),
        ([plain + plain], 2),
        ([plain + plain + head], 3),
        ([head[:cut], head[cut:]], 1),
        ([head + plain[:cut_of_plain], plain[cut_of_plain:]], 2),
        ([b"\r\n" + head], 1),
        ([head.replace(b"\r\n", b"\n")], 1),
        ([head_of(person, path, b"connection: close")], 1),
        ([head_of(person, path, version=b"1.0")], 1),
        ([post % 2 + b"{}", plain], 2),
        ([b"GET http://localhost/v1/overview" + plain[len("GET /v1/overview") :]], 1),
        ([plain.replace(b"localhost", b"local host")], 1),
        # What is a known head by itself is the rest of one here, or a body.
        ([b"GET /v1/overview HTTP/1.1\r\nhost: localhost\r\nx-part: ", plain], 1),
        ([post % len(plain), plain], 1),
        ([plain + rng.choice(list(TAILS.values())[:-2])], 2),
    ]
    return rng.choice([*choices, *[([plain], 1)] * 8])


@pytest.mark.parametrize("seed", range(4))
async def test_thousands_of_heads_get_the_same_answers_as_when_each_is_parsed(
    app: Onehop, make_person: MakePerson, serve: Serve, seed: int
) -> None:
    rng = random.Random(seed)
    first = await serve()
    known = first.manager.known_requests = Counted()
    knowing, parsing = Client(first), Client(await serve(0))
    person = await make_person()
    etag, is_logged_in = (await person.get("/v1/overview")).headers["etag"].encode(), True
    for _ in range(250):
        match rng.randrange(40):
            case 0 if is_logged_in:
                await person.patch("/v1/users/me", json={"display_name": f"Name {rng.random()}"})
            case 1 if is_logged_in:
                etag = (await person.get("/v1/overview")).headers["etag"].encode()
            case 2 if is_logged_in:
                await person.post("/v1/auth/logout", json={})
                is_logged_in = False
            case 3 | 4 if not is_logged_in:
                person, is_logged_in = await make_person(), True
            case _:
                chunks, answers = _chunks(rng, person, etag)
                assert await knowing.send(*chunks, answers=answers) == await parsing.send(*chunks, answers=answers)
    assert known.hits > 20
    await knowing.close()
    await parsing.close()


async def test_each_answer_is_asked_for_anew(app: Onehop, person: Person, serve: Serve) -> None:
    server = await serve()
    known = server.manager.known_requests = Counted()
    client = Client(server)
    head = head_of(person)
    (first,) = await client.send(head, answers=1)
    assert await client.send(head, answers=1) == [first]
    assert await client.send(head, answers=1) == [first]
    assert known.hits == 1
    (bucket,) = [bucket for key, bucket in app.state.limits.buckets.items() if key.endswith(person.id.hex)]
    tokens = bucket.tokens
    assert await client.send(head, answers=1) == [first]
    assert tokens - bucket.tokens == pytest.approx(0.05)
    bucket.tokens = bucket.low
    assert await client.send(head, answers=1) == [first], "the layers lease more of the quota"
    await person.patch("/v1/users/me", json={"display_name": "Other"})
    (changed,) = await client.send(head, answers=1)
    assert b'"Other"' in changed
    await person.post("/v1/auth/logout", json={})
    (refused,) = await client.send(head, answers=1)
    assert refused.startswith(b"HTTP/1.1 401 ")
    await client.close()


async def test_a_client_that_polls_is_not_idle(person: Person, serve: Serve) -> None:
    server = await serve(idle_timeout=1.0)
    client = Client(server)
    head = head_of(person)
    for _ in range(30):
        (answer,) = await client.send(head, answers=1)
        assert answer.startswith(b"HTTP/1.1 200 ")
        server.manager.sweep()
        await asyncio.sleep(0.06)
    assert server.state.total_requests == 30
    (connection,) = server.state.connections
    await eventually(lambda: not server.state.connections)
    assert connection.transport.is_closing()
    await client.close()


async def test_a_server_that_ends_says_so_to_a_known_request(person: Person, serve: Serve) -> None:
    server = await serve()
    client = Client(server)
    head = head_of(person)
    for _ in range(3):
        await client.send(head, answers=1)
    for connection in server.state.connections:
        connection.shutdown()
    (last,) = await client.send(head, answers=1)
    assert b"\r\nconnection: close\r\n" in last
    await client.close()


@pytest.mark.parametrize("field", [b"x-request-id: mine", b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"])
async def test_what_names_one_request_is_not_kept(person: Person, serve: Serve, field: bytes) -> None:
    server = await serve()
    known = server.manager.known_requests = Counted()
    client = Client(server)
    for _ in range(3):
        await client.send(head_of(person, "/v1/overview", field), answers=1)
    assert known.hits == 0
    await client.close()


def test_the_oldest_goes_when_there_are_too_many() -> None:
    known = KnownRequests(3)
    one, other = Request(b"one"), Request(b"other")
    for head, request in ((b"a", one), (b"b", other), (b"a", one), (b"c", other), (b"d", one)):
        known.add(head, request)
    assert [known.get(head) for head in (b"a", b"b", b"c", b"d")] == [None, other, other, one]


def test_one_token_makes_no_other_go() -> None:
    known = KnownRequests()
    one, other = Request(b"one"), Request(b"other")
    known.add(b"mine", other)
    for number in range(10_000):
        known.add(b"%d" % number, one)
    assert known.get(b"mine") is other
    assert len(known._requests) == 65
    assert known.get(b"9999") is one
    assert known.get(b"9935") is None


async def test_a_long_head_is_parsed_each_time(person: Person, serve: Serve) -> None:
    server = await serve()
    client = Client(server)
    long = head_of(person, "/v1/overview", b"user-agent: " + b"x" * 2048)
    for _ in range(3):
        await client.send(long, answers=1)
    assert server.known.get(long) is None
    await client.close()


TAILS = {
    "no host": b"GET /v1/overview HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "another host": b"GET http://other/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "length and coding": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "unknown coding": b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
    "unknown method": b"FROB / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a NUL": b"\0",
    "a space": b" ",
    "no message": b"nonsense\r\n\r\n",
    "a version to come": b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    "half a head": b"GET / HT",
    "line ends": b"\r\n",
}


@pytest.mark.parametrize("upgrade", [(), (b"connection: upgrade", b"upgrade: h2c")], ids=["plain", "upgrade"])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
async def test_a_head_with_something_behind_it_is_not_kept(
    person: Person, serve: Serve, tail: bytes, upgrade: tuple[bytes, ...]
) -> None:
    server = await serve()
    head = head_of(person, "/v1/overview", *upgrade)
    first, second = Client(server), Client(server)
    await first.send(head_of(person), answers=1)
    await second.send(head_of(person), answers=1)
    begun = [await client.send(head + tail, answers=1) for client in (first, second)]
    assert begun[0] == begun[1]
    assert server.known.get(head + tail) is None
    await first.close()
    await second.close()
