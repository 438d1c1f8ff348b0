"""uvicorn's HTTP/1.1 protocol, guarded against clients that send too much, too slowly or ambiguously, or do not read.

`uvicorn --http app.kernel.server.protocol:GuardedProtocol` works too, with the default limits.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.kernel.errors import (
    AppError,
    HeadTooLarge,
    InvalidMessage,
    TargetTooLong,
    TooManyConnections,
)
from app.kernel.http.prepared_problem import Refused
from app.kernel.request.client_address import network_of
from app.kernel.server.connections import (
    LINGER_BYTES,
    ended,
    refusal,
)
from app.kernel.server.known_requests import LONGEST_KNOWN_HEAD, RequestDecider
from app.kernel.server.request_validation import WHOLE_SERVER, fault_of_head
from app.kernel.server.response_cycle import ResponseCycle, write_finished
from app.kernel.server.timed_protocol import TimedProtocol

_WATCHED = frozenset({b"host", b"expect", b"transfer-encoding"})
_END_OF_HEAD = b"\r\n\r\n"
_FIELD_OVERHEAD = len(": \r\n")
# Fields behind a body (RFC 9112, section 7.1.2) go here: nothing of ours wants them, and among those of the head they
# could pretend to be something.
_TRAILERS: Any = deque(maxlen=0)
# Chunks of a single byte are allowed.
_FRAMING_OF_A_BYTE = 16


class GuardedProtocol(TimedProtocol):
    """One connection. Each event is handled at once; time-outs are found by the sweep."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # An application may decide about a request before it gets a task.
        self._edge: RequestDecider | None = getattr(self.app, "edge", None)
        self._known_requests = self._manager.known_requests
        # Whether the last request was answered before ASGI.
        self._is_answered_early = False
        self._heads = 0
        # It may have paths whose errors have OAuth's form, too.
        self._oauth_paths: Collection[str] = getattr(self.app, "oauth_paths", ())
        # uvicorn sets it only when a request begins.
        self.url = b""
        self._refusal: AppError | None = None
        self._chunk = 0
        self._head_bytes = 0
        self._hosts: list[bytes] = []
        self._codings: list[bytes] = []
        self._is_chunked = False
        self._framing = 0

    @property
    def host(self) -> str | None:
        """Address of the client; None at a local socket."""
        return self.client[0] if self.client else None

    def abort(self) -> None:
        """Ends the connection at once; what it still has to send is lost."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._manager.add(self)
        if self._manager.make_room(self):
            return
        self._refuse(TooManyConnections())
        if self._manager.is_over_hard_cap():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._manager.remove(self)
        self.pipeline.clear()
        active = self._active
        if active is not None and active is not self.cycle:
            # uvicorn tells only the newest request of a connection.
            active.disconnected = not active.response_complete
            active.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        chunk = len(data)
        may_be_known = chunk <= LONGEST_KNOWN_HEAD and self._is_between_requests()
        if may_be_known and self._is_answered_again(data):
            return
        heads = self._heads
        self._chunk = chunk
        self._received += chunk
        if self._is_rejecting:
            if self._received > LINGER_BYTES:
                self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            is_ours = isinstance(error, httptools.HttpParserCallbackError)
            self._refuse(self._refusal or InvalidMessage(None if is_ours else str(error)))
            self._refusal = None
            return
        if self._headed is not self.scope:
            self._note_unfinished_head()
        elif self._is_chunked:
            self._note_framing()
        elif may_be_known and self._is_answered_early and self._heads == heads + 1:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Knows `data` from now on if it is one whole head and not a byte more, and its request may come again."""
        cycle = self.cycle
        if (
            cycle is None
            or self._edge is None
            or not cycle.keep_alive
            or data.find(_END_OF_HEAD) != len(data) - len(_END_OF_HEAD)
        ):
            return
        request = self._edge.repeatable(cycle.scope)
        if request is not None:
            self._known_requests.add(data, request)

    def _is_answered_again(self, head: bytes) -> bool:
        """Whether this is the whole head of a request that came before, and has been answered without parsing it.

        The first request of a connection is always parsed, because the sweep tells a new connection by the lack of one.
        """
        request = self._known_requests.get(head)
        if request is None or self.cycle is None or self._edge is None:
            return False
        if self.flow.write_paused or self._manager.is_draining or self.transport.is_closing():
            return False
        answer = self._edge.answer(request)
        if answer is None:
            return False
        start, body = answer
        write_finished(self.transport, start, self.server_state.default_headers, b"\r\n", body)
        self.server_state.total_requests += 1
        # For the sweep, which tells requests by their scopes, this was another one.
        self._seen_scope = None
        return True

    def on_body(self, body: bytes) -> None:
        if self._is_chunked:
            self._framing -= _FRAMING_OF_A_BYTE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's, but the end of a body is noted even if its answer was faster."""
        cycle = self.cycle
        if cycle is not None and not self.parser.should_upgrade():
            cycle.more_body = False
            cycle.message_event.set()

    def _note_framing(self) -> None:
        """The parser keeps a field behind the body until it ends, so that it has to end soon."""
        self._framing += self._chunk
        if self.cycle is None or not self.cycle.more_body:
            self._is_chunked = False
        elif self._framing > 2 * self._limits.max_head_bytes:
            self._refuse(InvalidMessage("There is too much around the chunks of the body."))

    def _note_unfinished_head(self) -> None:
        # Of a chunk that began with something else only what has been understood counts.
        more = self._chunk if self._head_bytes or self._chunk <= self._limits.max_head_bytes else self._head_size()
        self._head_bytes += more
        if len(self.url) > self._limits.max_target_bytes:
            self._refuse(TargetTooLong())
        elif self._head_bytes > self._limits.max_head_bytes or len(self.headers) > self._limits.max_head_fields:
            self._refuse(HeadTooLarge())

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in self.headers)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _WATCHED and self._headed is not self.scope:
            if name == b"host":
                self._hosts.append(value)
            elif name == b"transfer-encoding":
                self._codings.append(value)
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """As uvicorn's, but the request is first looked at for what RFC 9112 wants to be refused."""
        parser = self.parser
        if parser.should_upgrade():
            return
        scope = self.scope
        version = parser.get_http_version()
        hosts, codings = self._hosts, self._codings
        self._hosts = []
        if codings:
            self._codings = []
            self._is_chunked, self._framing = True, 0
        method = parser.get_method()
        knows_host = self._manager.knows_host
        error = self._excess() or fault_of_head(method, self.url, version, hosts, codings, knows_host)
        if error is not None:
            self._refusal = error
            # As long as its traceback referred to the variable, and that to it, only the collector could free both.
            del error
            raise self._refusal
        self._head_bytes = 0
        self._heads += 1
        self._is_answered_early = False
        self._headed = scope
        self.headers = _TRAILERS
        scope["method"] = method.decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if self.url == WHOLE_SERVER:
            raw_path, query = WHOLE_SERVER, b""
        else:
            url = httptools.parse_url(self.url)
            raw_path, query = url.path or b"/", url.query or b""
        path = raw_path.decode("ascii")
        scope["raw_path"] = raw_path
        scope["path"] = unquote(path) if "%" in path else path
        scope["query_string"] = query
        waiting = self._active
        self.cycle = cycle = ResponseCycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue and version != "1.0",
            version != "1.0" and parser.should_keep_alive() and not self._manager.is_draining,
            self.on_response_complete,
        )
        if scope["method"] == "HEAD":
            cycle.is_head = True
        if waiting is None or waiting.response_complete:
            self._active = cycle
            self._begin(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _begin(self, cycle: ResponseCycle) -> None:
        """Answers at once as far as the application's edge can, or else starts the application."""
        # What cannot be written now would wait in memory.
        decision = self._edge.decide(cycle.scope) if self._edge is not None and not self.flow.write_paused else None
        if decision is None:
            self._start_asgi_task(cycle, self.app)
        elif isinstance(decision, Refused):
            cycle.is_refused = True
            self._manager.refusal_queue.put(cycle, decision.raw(), network_of(self.host))
        else:
            self._is_answered_early = True
            # The parser is about to tell that nothing follows.
            cycle.more_body = False
            cycle.send_finished(*decision)

    def _excess(self) -> AppError | None:
        """What of the head is too much."""
        limits = self._limits
        if len(self.url) > limits.max_target_bytes:
            return TargetTooLong()
        if len(self.headers) > limits.max_head_fields:
            return HeadTooLarge()
        if (self._head_bytes or self._chunk > limits.max_head_bytes) and self._head_size() > limits.max_head_bytes:
            return HeadTooLarge()
        if len(self.pipeline) >= limits.max_pipelined:
            return InvalidMessage("Too many requests wait on this connection.")
        return None

    def _should_upgrade(self) -> bool:
        """For uvicorn's callbacks: a message with `Upgrade` is not the one that is answered, see below."""
        return True

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Reads the request again as if it had not asked for another protocol, which a server may do (RFC 9110,
        section 7.8).

        The parser takes what follows such a head for the other protocol. Were it told to go on, it would take a body
        for the next request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(InvalidMessage("This is no proxy."))
            return
        fields = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        again = b"%s %s HTTP/%s\r\n%s\r\n%s" % (method, self.url, version, fields, rest)
        self._hosts, self._codings, self._head_bytes = [], [], 0
        self._headed = self.scope
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._received -= len(again)
        self.data_received(again)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            waiting, app = self.pipeline.pop()
            assert isinstance(waiting, ResponseCycle)  # noqa: S101 - nothing else is put there.
            self._active = waiting
            self._start_asgi_task(waiting, app)
        elif self._is_rejecting:
            self._half_close(b"")

    def shutdown(self) -> None:
        """The process is about to end. An answer that has not begun says so; an idle connection stays for one more
        request, because that may be on its way already.
        """
        self._manager.is_draining = True
        self._quiet_until = 0.0
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def _refuse(self, error: AppError) -> None:
        """The connection's last answer, behind those that are due; what comes in afterwards is thrown away."""
        ended.labels(error.code).inc()
        self._quiet_until = 0.0
        self._is_rejecting = True
        self._received = 0
        active, cycle = self._active, self.cycle
        if active is None or active.response_complete:
            self._half_close(self._refusal_in_form(error))
        elif active is cycle and cycle.more_body and self._headed is self.scope:
            # What is wrong is the body that the application waits for.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                cycle.cut_off()
            else:
                answer = self._refusal_in_form(error)
                cycle.response_complete = True
                self._half_close(answer)
        elif cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def _refusal_in_form(self, error: AppError) -> bytes:
        """In the form that the errors of its path have, as far as a request has come and is not answered."""
        if self._headed is self.scope and (self.cycle is None or self.cycle.response_complete):
            return refusal(error, self.server_state.default_headers, is_oauth=False)
        path = unquote(self.url.partition(b"?")[0].decode("latin-1"))
        return refusal(error, self.server_state.default_headers, is_oauth=path in self._oauth_paths)

    def _half_close(self, answer: bytes) -> None:
        """Ends our side of the connection, and leaves the other one the time to notice."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
