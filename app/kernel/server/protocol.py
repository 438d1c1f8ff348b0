"""uvicorn's HTTP/1.1 protocol, guarded against clients that send too much, too slowly or ambiguously, or do not read.

`uvicorn --http app.kernel.server.protocol:GuardedProtocol` works too, with the default limits.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.kernel.errors import (
    AppError,
    HeadTooLarge,
    InvalidMessage,
    RequestTimeout,
    TargetTooLong,
    TooManyConnections,
)
from app.kernel.server.connections import (
    DRAIN_IDLE_SECONDS,
    LINGER_BYTES,
    LINGER_SECONDS,
    ended,
    manager_of,
    refusal,
)
from app.kernel.server.request_validation import WHOLE_SERVER, fault_of_head
from app.kernel.server.response_cycle import ResponseCycle
from app.kernel.settings import ConnectionSettings

_WATCHED = frozenset({b"host", b"expect", b"transfer-encoding"})
_FIELD_OVERHEAD = len(": \r\n")
# Fields behind a body (RFC 9112, section 7.1.2) go here: nothing of ours wants them, and among those of the head they
# could pretend to be something.
_TRAILERS: Any = deque(maxlen=0)
# Chunks of a single byte are allowed.
_FRAMING_OF_A_BYTE = 16


class _State(Enum):
    NEW = "waiting for its first request"
    HEAD = "receiving a head"
    BODY = "receiving a body"
    ANSWERING = "its request is being worked on"
    REST = "the body goes on behind the answer"
    IDLE = "waiting for another request"
    LEAVING = "nothing more will be answered"


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Each event is handled at once; time-outs are found by the sweep, in `check_timeouts`."""

    cycle: ResponseCycle | None  # type: ignore[assignment]  # it is, until the first request

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits: ConnectionSettings = getattr(config, "connections", None) or ConnectionSettings()
        self._manager = manager_of(server_state, self._limits, self.loop)
        # An application may have a finished answer for what it has no place for (`Onehop.refusal_of`).
        self._refusal_of: Callable[[Any], bytes | None] | None = getattr(self.app, "refusal_of", None)
        # ... and one for what it remembers (`Onehop.answer_of`), as head and body.
        self._answer_of: Callable[[Any], tuple[bytes, bytes] | None] | None = getattr(self.app, "answer_of", None)
        self._active: ResponseCycle | None = None
        # The scope whose head has come to its end; another one than `scope` while a head is on its way.
        self._headed: Any = None
        self._refusal: AppError | None = None
        self._is_rejecting = False
        self._chunk = 0
        self._received = 0
        self._head_bytes = 0
        self._hosts: list[bytes] = []
        self._codings: list[bytes] = []
        self._is_chunked = False
        self._framing = 0
        # What the last sweep saw, and when it saw it first.
        self._seen_state = _State.NEW
        self._seen_scope: Any = None
        self._since = self.loop.time()
        # Until then nothing can be wrong with it, unless another request begins.
        self._quiet_until = 0.0
        self._received_before = 0
        self._stalled_since: float | None = None
        self._unsent_before = 0

    @property
    def idle_since(self) -> float | None:
        """By the loop's clock; None while there is a request."""
        state = self._state()
        if state is not _State.NEW and state is not _State.IDLE:
            return None
        return self._since if self._seen_scope is self.scope else self.loop.time()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client lets wait; 0 where they are few."""
        return self.transport.get_write_buffer_size() if self.flow.write_paused else 0

    @property
    def host(self) -> str | None:
        """Address of the client; None at a local socket."""
        return self.client[0] if self.client else None

    def abort(self) -> None:
        """Ends the connection at once; what it still has to send is lost."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if not self._manager.make_room(self):
            self._refuse(TooManyConnections())
        if self._manager.is_over_hard_cap():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pipeline.clear()
        active = self._active
        if active is not None and active is not self.cycle:
            # uvicorn tells only the newest request of a connection.
            active.disconnected = not active.response_complete
            active.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = chunk = len(data)
        self._received += chunk
        if self._is_rejecting:
            if self._received > LINGER_BYTES:
                self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            is_ours = isinstance(error, httptools.HttpParserCallbackError)
            self._refuse(self._refusal or InvalidMessage(None if is_ours else str(error)))
            self._refusal = None
        if self._headed is not self.scope and not self._is_rejecting:
            self._note_unfinished_head()
        elif self._is_chunked:
            self._note_framing()

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
        is_encoded = "%" in path
        scope["path"] = unquote(path) if is_encoded else path
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
            if self._is_answered(cycle, is_special=is_encoded or bool(codings)):
                return
            refusal = self._refusal_of(scope) if self._refusal_of is not None else None
            if refusal is None:
                self._start_asgi_task(cycle, self.app)
            else:
                self._manager.refusal_queue.put(cycle, refusal)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _is_answered(self, cycle: ResponseCycle, *, is_special: bool) -> bool:
        """Whether the application remembered an answer, which has been sent then. A request with a body, or with a path
        that the layers may refuse, is special.
        """
        if self._answer_of is None or is_special or self.expect_100_continue or self.flow.write_paused:
            return False
        answer = self._answer_of(cycle.scope)
        if answer is None:
            return False
        # The parser is about to tell that nothing follows.
        cycle.more_body = False
        cycle.send_finished(*answer)
        return True

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

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def shutdown(self) -> None:
        """The process is about to end. An answer that has not begun says so; an idle connection stays for one more
        request, because that may be on its way already.
        """
        self._manager.is_draining = True
        self._quiet_until = 0.0
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def end(self, reason: str) -> None:
        """Closes it without a word."""
        ended.labels(reason).inc()
        self._quiet_until = 0.0
        self.transport.close()

    def check_timeouts(self, now: float) -> None:
        """Ends the connection if it has been in its state for too long."""
        if self.scope is self._seen_scope and now < self._quiet_until:
            return
        state, since = self._state(), self._since
        if state is not self._seen_state or self.scope is not self._seen_scope:
            # A body's time goes on when its request has been answered already.
            if state is not _State.REST or self.scope is not self._seen_scope:
                self._since = since = now
                self._received_before = self._received
            self._seen_state, self._seen_scope = state, self.scope
            self._quiet_until = 0.0
        self._examine_writing(now)
        if state is _State.ANSWERING:
            return
        age = now - since
        limits = self._limits
        if state is _State.HEAD and age > limits.head_timeout:
            self._refuse(RequestTimeout("The head of the request did not come in time."))
        elif state is _State.BODY:
            self._examine_body(age)
        elif state is _State.REST and self._is_too_slow(age):
            self.end("request_timeout")
        else:
            self._examine_silence(state, age)

    def _examine_silence(self, state: _State, age: float) -> None:
        limits = self._limits
        if state is _State.LEAVING:
            if age > (limits.write_timeout if self.transport.is_closing() else LINGER_SECONDS):
                self.transport.abort()
        elif state is _State.NEW or state is _State.IDLE:
            seconds = limits.head_timeout if state is _State.NEW else limits.idle_timeout
            is_draining = self._manager.is_draining
            if is_draining:
                seconds = min(seconds, DRAIN_IDLE_SECONDS)
            if age > seconds:
                self.end("drained" if is_draining else "idle")
            elif not is_draining and not self.flow.write_paused:
                self._quiet_until = self._since + seconds

    def _state(self) -> _State:
        cycle, active = self.cycle, self._active
        is_answered = active is None or active.response_complete
        if self.transport.is_closing() or (self._is_rejecting and is_answered):
            return _State.LEAVING
        if not is_answered:
            is_whole = cycle is None or active is not cycle or not cycle.more_body or self._headed is not self.scope
            return _State.ANSWERING if is_whole else _State.BODY
        if self._headed is not self.scope:
            return _State.HEAD
        if cycle is None:
            return _State.NEW
        return _State.REST if cycle.more_body else _State.IDLE

    def _examine_body(self, age: float) -> None:
        cycle = self.cycle
        if cycle is None or self.flow.read_paused or cycle.waiting_for_100_continue:
            # It is we who let it wait.
            self._since += age
            self._received_before = self._received
            return
        if self._is_too_slow(age):
            self._refuse(RequestTimeout("The body of the request did not come in time."))

    def _is_too_slow(self, age: float) -> bool:
        """Whether a body that has been coming for so long takes too long; after a third of the time one can see it."""
        timeout = self._limits.body_timeout
        received = self._received - self._received_before
        return age > timeout or (age > timeout / 3 and received < self._limits.min_rate * age)

    def _examine_writing(self, now: float) -> None:
        """Cuts off a client that does not read its answer."""
        if not self.flow.write_paused:
            self._stalled_since = None
            return
        unsent = self.transport.get_write_buffer_size()
        if self._stalled_since is None:
            self._stalled_since, self._unsent_before = now, unsent
        elif (age := now - self._stalled_since) > self._limits.write_timeout:
            if self._unsent_before - unsent < self._limits.min_rate * age:
                ended.labels("write_timeout").inc()
                self.transport.abort()
            else:
                self._stalled_since, self._unsent_before = now, unsent

    def _refuse(self, error: AppError) -> None:
        """The connection's last answer, behind those that are due; what comes in afterwards is thrown away."""
        ended.labels(error.code).inc()
        self._quiet_until = 0.0
        self._is_rejecting = True
        self._received = 0
        active, cycle = self._active, self.cycle
        if active is None or active.response_complete:
            self._half_close(refusal(error, self.server_state.default_headers))
        elif active is cycle and cycle.more_body and self._headed is self.scope:
            # What is wrong is the body that the application waits for.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                cycle.cut_off()
            else:
                cycle.response_complete = True
                self._half_close(refusal(error, self.server_state.default_headers))
        elif cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

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
