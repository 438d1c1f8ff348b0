"""One request and its answer."""

import asyncio
import re
import socket
import struct
from collections.abc import Iterable
from itertools import chain, starmap
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.kernel.errors import AppError, Unavailable
from app.kernel.headers.response_head import PreparedHead, header_line
from app.kernel.observability.telemetry import get_logger
from app.kernel.server.connections import refusal

_logger = get_logger(__name__)


# Field names that have been looked at, each as it goes over the wire. They are those of our own code.
_PREFIXES: dict[bytes, bytes] = {}
_MAX_PREFIXES = 1000
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# All that a value may hold (RFC 9110, section 5.5). What is left of a head without it must be its line ends.
_VISIBLE = bytes([9, *range(32, 127), *range(128, 256)])
_STATUSES_WITHOUT_BODY = frozenset({204, 304})
# To send a body with its head takes a copy of it, which is cheaper than another system call up to here.
_SHARED_BYTES = 64 * 1024
# `struct linger`: on, and no second.
_RESET = struct.pack("ii", 1, 0)


class ResponseCycle(RequestResponseCycle):
    """uvicorn's, except for what becomes of a failure, and for what it writes: an answer that comes whole with a
    prepared head at once, any other head after one look at all of it instead of two at each field.
    """

    # No work is done for it, and its answer is on its way.
    is_refused = False
    # Noted when the request comes, because the application answers as if it were GET.
    is_head = False
    # The body ends with the connection (RFC 9112, section 6.3), because HTTP/1.0 has no chunks (section 6.1).
    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            if self.waiting_for_100_continue:
                self._answer_instead_of_100()
            if not self._send_prepared(message) and not self.disconnected:
                self._send_start(message)
        elif self.disconnected:
            return
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            error = f"{kind} was not to be sent now"
            raise RuntimeError(error)

    def _answer_instead_of_100(self) -> None:
        """Only the client knows whether the body that it announced still comes (RFC 9110, section 10.1.1)."""
        if self.more_body and not self.body:
            self.keep_alive = False

    def _send_prepared(self, message: Any) -> bool:
        """Whether it was an answer that comes whole with a prepared head; it has been sent then."""
        prepared: PreparedHead | None = message.get("prepared")
        if prepared is None or message["whole_body"] is None:
            return False
        headers = message["headers"]
        known = len(prepared.headers)
        if headers[:known] != prepared.headers:
            # A layer between has put something in front of them.
            return False
        message["is_sent_whole"] = True
        if self.disconnected:
            return True
        self.waiting_for_100_continue = False
        start = b"".join([prepared.rendered, *starmap(header_line, headers[known:])])
        self.send_finished(start, message["whole_body"])
        self.message_event.set()
        return True

    def send_finished(self, start: bytes, body: bytes) -> None:
        """Sends a whole answer. `start` is its head but for the server's own headers and the last line end."""
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self.response_started = self.response_complete = True
        write_finished(self.transport, start, self.default_headers, end, body)
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _send_start(self, message: Any) -> None:
        """The head, and with it the body if that has come too."""
        head = self._render_head(message["status"], message.get("headers", ()))
        self.response_started = True
        self.waiting_for_100_continue = False
        body: bytes | None = message.get("whole_body")
        if body is None or self.chunked_encoding or len(body) != self.expected_content_length:
            self.transport.write(head)
            return
        message["is_sent_whole"] = True
        _write_whole(self.transport, head, body)
        self._complete()

    def _render_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = [STATUS_LINE[status]]
        is_closing = False
        knows_chunks = self.scope["http_version"] != "1.0"
        for name, value in chain(self.default_headers, headers):
            prefix = _PREFIXES.get(name) or _prefix_of(name)
            if prefix == b"content-length: ":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif prefix == b"transfer-encoding: ":
                if not knows_chunks:
                    continue
                self.chunked_encoding = True
            elif prefix == b"connection: " and b"close" in value.lower():
                self.keep_alive = False
                is_closing = True
            lines.append(b"%s%s\r\n" % (prefix, value))
        if self.chunked_encoding is None and not self.is_head and status not in _STATUSES_WITHOUT_BODY:
            if knows_chunks:
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self._ends_with_connection = True
                self.keep_alive = False
        if not self.keep_alive and not is_closing:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.translate(None, _VISIBLE) != b"\r\n" * len(lines):
            raise ValueError("a header field holds a control character")
        return head + b"\r\n"

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        if self.is_head:
            self.expected_content_length = 0
        elif self.chunked_encoding:
            chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            self.transport.write(chunk + b"0\r\n\r\n" if is_last else chunk)
        elif self._ends_with_connection:
            self.transport.write(body)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the body is longer than its content-length")
            self.transport.write(body)
        if is_last:
            if self.expected_content_length > 0:
                raise RuntimeError("the body is shorter than its content-length")
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def take(self, answer: bytes) -> None:
        """Sends a whole answer that was made without the application."""
        if self.disconnected or self.transport.is_closing():
            return
        if self.waiting_for_100_continue:
            self._answer_instead_of_100()
        self.response_started = self.response_complete = True
        if self.keep_alive:
            self.transport.write(answer)
        else:
            self.transport.write(answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            self.transport.close()
        self.on_response()

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            await self._give_up(Unavailable("The process was stopped before the request was done."))
        except Exception:
            _logger.exception("server.request_failed", path=self.scope["path"])
            await self._give_up(AppError())
        else:
            if not self.response_complete and not self.disconnected:
                _logger.error("server.request_unanswered", path=self.scope["path"])
                await self._give_up(AppError())
        finally:
            self.on_response = _nothing

    def cut_off(self) -> None:
        """Ends the connection so that the client does not take the half of an answer for a whole one."""
        connection = self.transport.get_extra_info("socket") if self._ends_with_connection else None
        if connection is not None:
            # An ordinary end would be that of the body; a reset is not.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    async def _give_up(self, error: AppError) -> None:
        if self.disconnected or self.response_complete:
            return
        if self.response_started:
            self.cut_off()
            return
        # Written as it is: the headers that the application would have added are in it.
        self.response_complete = self.response_started = True
        self.keep_alive = False
        self.transport.write(refusal(error, self.default_headers))
        self.transport.close()
        self.on_response()


def write_finished(
    transport: asyncio.Transport, start: bytes, default_headers: list[tuple[bytes, bytes]], end: bytes, body: bytes
) -> None:
    """Writes a whole answer, whose head ends with the server's own headers and `end`."""
    lines = _lines_of(default_headers)
    if len(body) < _SHARED_BYTES:
        # One copy of all parts, for the many short answers.
        transport.write(b"%b%b%b%b" % (start, lines, end, body))
    else:
        _write_whole(transport, b"%b%b%b" % (start, lines, end), body)


def _write_whole(transport: asyncio.Transport, head: bytes, body: bytes) -> None:
    if len(body) < _SHARED_BYTES:
        transport.write(head + body)
    else:
        # Not copied: however many clients are slow to read it, they wait for the same bytes.
        transport.write(head)
        transport.write(body)


def _lines_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Rendered once a second: then there is a new list, with another date."""
    if headers is not _default.headers:
        _default.headers, _default.lines = headers, b"".join(starmap(header_line, headers))
    return _default.lines


class _Default:
    """The server's own headers, rendered once."""

    headers: list[tuple[bytes, bytes]] | None = None
    lines = b""


_default = _Default()


def _prefix_of(name: bytes) -> bytes:
    if _NAME.fullmatch(name) is None:
        raise ValueError("a header field has an invalid name")
    prefix = name.lower() + b": "
    if len(_PREFIXES) < _MAX_PREFIXES:
        _PREFIXES[name] = prefix
    return prefix


def _nothing() -> None:
    """Answers are complete only once."""
