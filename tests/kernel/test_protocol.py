"""What a client may do with a connection, by raw sockets against the protocol with a small application behind it."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.fixtures.waiting import scaled
from tests.kernel.protocol_server import CHUNKED, HOST, POST, Served, answers, echo, read, refused, request


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served().running() as running:
        yield running


INVALID = {
    "length and coding": request(POST, b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "coding and length": request(POST, CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": request(POST, b"Content-Length: 5", b"Content-Length: 6", body=b"abcdef"),
    "the same length twice": request(POST, b"Content-Length: 5", b"Content-Length: 5", body=b"abcde"),
    "a list of lengths": request(POST, b"Content-Length: 5, 5", body=b"abcde"),
    "a signed length": request(POST, b"Content-Length: +5", body=b"abcde"),
    "a huge length": request(POST, b"Content-Length: 99999999999999999999999", body=b"abcde"),
    "two codings": request(POST, CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "a space before the colon": request(POST, b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "a coding in HTTP/1.0": b"POST /a HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n0\r\n\r\n",
    "no chunk size": request(POST, CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "a prefixed chunk size": request(POST, CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a huge chunk size": request(POST, CHUNKED, body=b"ffffffffffffffff1\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is too long": request(POST, CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"),
    "bare LF in chunks": request(POST, CHUNKED, body=b"3\nabc\n0\n\n"),
    "bare LF in an extension": request(POST, CHUNKED, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "bare LF": b"GET /a HTTP/1.1\nHost: onehop.example\n\n",
    "bare LF behind a field": request(b"GET /a", b"X: y\n"),
    "bare CR": request(b"GET /a", b"X: a\rb"),
    "a folded field": request(b"GET /a", b"X: a\r\n b"),
    "a field that begins with a space": b"GET /a HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "NUL in a value": request(b"GET /a", b"X: a\0b"),
    "NUL in a name": request(b"GET /a", b"X\0: a"),
    "NUL in the target": request(b"GET /\0"),
    "no ASCII in the target": request("GET /\u00e4".encode()),
    "no host": request(host=b""),
    "two hosts": request(host=HOST * 2),
    "an empty host": request(host=b"Host: \r\n"),
    "a host with a path": request(host=b"Host: foo/bar?x\r\n"),
    "a host with a user": request(host=b"Host: a@b\r\n"),
    "another host's URI": request(b"GET http://evil.example/x"),
    "a URI with a user": request(b"GET http://a@onehop.example/x"),
    "no path": request(b"GET *"),
    "half a path": request(b"OPTIONS *a"),
    "a tunnel": request(b"CONNECT onehop.example:80"),
    "HTTP/2.0": b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("sent", INVALID.values(), ids=INVALID.keys())
def test_ambiguous_messages_are_refused(served: Served, sent: bytes) -> None:
    """What two programs might read in two ways (RFC 9112, section 11); what follows is not read as a request."""
    refused(served.exchange(sent + request(b"GET /smuggled")), 400, "invalid_message")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity", b"xchunked"])
def test_unknown_codings(served: Served, coding: bytes) -> None:
    refused(served.exchange(request(POST, b"Transfer-Encoding: " + coding)), 501, "unknown_transfer_coding")


def test_what_is_unusual_but_right(served: Served) -> None:
    """On one connection, because each is understood to its end."""
    received = served.exchange(
        b"\r\n" + request(),
        request(b"GET http://onehop.example/b?c"),
        request(b"GET http://onehop.example"),
        request(POST, CHUNKED, body=b"3;a=b\r\nabc\r\n0\r\nHost: evil\r\n\r\n"),
        request(POST, b"Content-Length: 2", body=b"ab") + request(b"GET /c%20d") + request(b"GET /e"),
    )
    assert answers(received) == [
        b"GET /a ",
        b"GET /b ",
        b"GET / ",
        b"POST /a abc",
        b"POST /a ab",
        b"GET /c d ",
        b"GET /e (open)",
    ]


def test_trailers_are_bounded(served: Served) -> None:
    sent = request(POST, CHUNKED, body=b"3\r\nabc\r\n0\r\nX: " + b"x" * 1_000_000)
    refused(served.exchange(sent), 400, "invalid_message")
    small = b"".join(b"1\r\n%c\r\n" % ord("a") for _ in range(50_000)) + b"0\r\n\r\n"
    assert answers(served.exchange(request(POST, CHUNKED, body=small))) == [b"POST /a " + b"a" * 50_000 + b"(open)"]


def test_http_1_0(served: Served) -> None:
    """Without a host and without keep-alive."""
    received = served.exchange(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"connection: close" in received
    assert answers(received) == [b"GET /a "]


@pytest.mark.parametrize("target", [b"/stream", b"/stream?named"])
def test_http_1_0_gets_no_chunks(served: Served, target: bytes) -> None:
    """An answer without a length ends with the connection, whatever the client says about keeping it (RFC 9112,
    sections 6.1 and 6.3).
    """
    for field in (b"", b"Connection: keep-alive\r\n", b"TE: chunked\r\n"):
        received = served.exchange(b"GET " + target + b" HTTP/1.0\r\n" + field + b"\r\n" + request(b"GET /b"))
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert b"connection: close" in lines
        assert not [line for line in lines if line.startswith((b"transfer-encoding", b"content-length"))]
        assert body == b"one,two,three"
    received = served.exchange(b"HEAD " + target + b" HTTP/1.0\r\n\r\n")
    assert (b"transfer-encoding" in received, received[-4:]) == (False, b"\r\n\r\n")
    received = served.exchange(request(b"GET " + target))
    assert received.endswith(b"\r\n\r\n4\r\none,\r\n4\r\ntwo,\r\n5\r\nthree\r\n0\r\n\r\n(open)")


def test_half_a_stream_in_http_1_0_is_no_whole_one(served: Served) -> None:
    """Its end is the end of the connection, so that a failure has to be a reset."""
    with served.connect() as connection, pytest.raises(ConnectionResetError):
        connection.sendall(b"GET /broken HTTP/1.0\r\n\r\n")
        while connection.recv(65536):
            pass


def test_options_of_the_whole_server(served: Served) -> None:
    """RFC 9112, section 3.2.4."""
    assert answers(served.exchange(request(b"OPTIONS *"))) == [b"OPTIONS * (open)"]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_upgrades_are_ignored(served: Served, protocol: bytes) -> None:
    """A body behind such a head is a body: not the next request, whenever it comes."""
    smuggled = request(b"GET /smuggled")
    head = request(POST, b"Connection: Upgrade", b"Upgrade: " + protocol, b"Content-Length: %d" % len(smuggled))
    for parts in ([head + smuggled + request(b"GET /b")], [head, smuggled, request(b"GET /b")]):
        assert answers(served.exchange(*parts)) == [b"POST /a " + smuggled, b"GET /b (open)"]


def test_expect(served: Served) -> None:
    received = served.exchange(request(POST, b"Expect: 100-continue", b"Content-Length: 3"), b"abc")
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert answers(received) == [b"POST /a abc(open)"]
    # HTTP/1.0 knows no 100.
    received = served.exchange(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_answer_instead_of_100_is_the_last(served: Served) -> None:
    """The body may come or not, so what comes next could be taken for either."""
    received = served.exchange(request(b"POST /early", b"Expect: 100-continue", b"Content-Length: 30"), request())
    assert b" 100 " not in received
    assert b"connection: close" in received
    assert answers(received) == [b"POST /early "]
    bodiless = request(b"GET /early", b"Expect: 100-continue")
    assert answers(served.exchange(bodiless, request())) == [b"GET /early ", b"GET /a (open)"]


def test_an_answer_that_is_due_comes_before_the_end(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(request(b"GET /slow") + b"GARBAGE\r\n\r\n")
        assert answers(read(connection, silence=5)) == [b"GET /slow "]


TOO_MUCH = {
    "a field of 10 MB": ([request(b"GET /a", b"X: " + b"x" * 10_000_000)], 431),
    "a field of 40 kB": ([request(b"GET /a", b"X: " + b"x" * 40_000)], 431),
    "fields of 40 kB in pieces": ([b"GET /a HTTP/1.1\r\n" + HOST, *([b"X: " + b"x" * 5000 + b"\r\n"] * 8)], 431),
    "20,000 fields": ([request(b"GET /a", *([b"a: b"] * 20_000))], 431),
    "101 fields": ([request(b"GET /a", *([b"a: b"] * 100))], 431),
    "a target of 1 MB": ([request(b"GET /" + b"x" * 1_000_000)], 414),
    "a target of 9 kB": ([request(b"GET /" + b"x" * 9000)], 414),
    "a target in pieces": ([b"GET /", *([b"x" * 3000] * 3)], 414),
}


@pytest.mark.parametrize(("parts", "status"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_heads_that_are_too_large(served: Served, parts: list[bytes], status: int) -> None:
    refused(served.exchange(*parts), status, {431: "head_too_large", 414: "target_too_long"}[status])


def test_heads_at_the_limit(served: Served) -> None:
    received = served.exchange(request(b"GET /" + b"x" * 8000, *([b"a: b"] * 90), b"X: " + b"x" * 20_000))
    assert received.startswith(b"HTTP/1.1 200 OK")


def test_pipelining_is_bounded(served: Served) -> None:
    """The first one and sixteen that wait are answered; the last answer says that it is the last."""
    received = served.exchange(request() * 1000)
    assert answers(received) == [b"GET /a "] * 17
    assert received.count(b"connection: close") == 1


class _AuthorizationServer:
    oauth_paths = frozenset({"/token"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)


def oauth_refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), answer[:300]
    assert {b"connection: close", b"content-type: application/json", b"cache-control: no-store"} <= set(lines)
    assert f"content-length: {len(body)}".encode() in lines
    error = orjson.loads(body)
    assert (error.keys(), error["error"]) == ({"error", "error_description"}, code)


@pytest.mark.timeout(600)
def test_what_the_server_refuses_of_oauth_has_the_form_of_oauth() -> None:
    """A client library takes an answer without `error` for a token."""
    with Served(_AuthorizationServer(), body_timeout=0.6).running() as served, served.connect() as slow:
        slow.sendall(request(b"POST /token", b"Content-Length: 9", body=b"a"))
        for parts in (
            [request(b"POST /token?" + b"x" * 9000)],
            [request(b"POST /%74oken", b"X: " + b"x" * 40_000)],
            [b"POST /token HTTP/1.1\r\n" + HOST, *([b"X: " + b"x" * 5000 + b"\r\n"] * 8)],
            [request(b"POST /token", CHUNKED, body=b"zz\r\n")],
            [request(b"POST /token", b"Content-Length: 5", CHUNKED)],
        ):
            oauth_refused(served.exchange(*parts), 400, "invalid_request")
        oauth_refused(read(slow, first=scaled(20)), 408, "request_timeout")
        refused(served.exchange(request(b"POST /tokens?" + b"x" * 9000)), 414, "target_too_long")
        # What comes behind an answer is no request of its path.
        with served.connect() as connection:
            connection.sendall(request(b"POST /token"))
            assert connection.recv(1000).endswith(b"\r\n\r\nPOST /token ")
            connection.sendall(b"\0")
            refused(read(connection), 400, "invalid_message")
