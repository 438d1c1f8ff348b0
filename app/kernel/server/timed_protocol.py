"""How long a connection may stay in the state that it is in. No request sets a timer: the sweep asks each of them."""

import asyncio
from enum import Enum
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.kernel.errors import AppError, RequestTimeout
from app.kernel.server.connections import DRAIN_IDLE_SECONDS, LINGER_SECONDS, ended, manager_of
from app.kernel.server.response_cycle import ResponseCycle
from app.kernel.settings import ConnectionSettings


class _State(Enum):
    NEW = "waiting for its first request"
    HEAD = "receiving a head"
    BODY = "receiving a body"
    ANSWERING = "its request is being worked on"
    REST = "the body goes on behind the answer"
    IDLE = "waiting for another request"
    LEAVING = "nothing more will be answered"


class TimedProtocol(HttpToolsProtocol):
    """What `GuardedProtocol` notes of its connection, and what follows from it as time passes."""

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
        self._active: ResponseCycle | None = None
        # The scope whose head has come to its end; another one than `scope` while a head is on its way.
        self._headed: Any = None
        self._is_rejecting = False
        self._received = 0
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
    def waits_for_client(self) -> bool:
        """Whether it is open, and no request of it is being worked on."""
        is_worked_on = self._state() is _State.ANSWERING and not (self._active is not None and self._active.is_refused)
        return not is_worked_on and not self.transport.is_closing()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client lets wait; 0 where they are few."""
        return self.transport.get_write_buffer_size() if self.flow.write_paused else 0

    def _is_between_requests(self) -> bool:
        """Whether the next byte begins a request, and the answers before it are complete."""
        cycle = self.cycle
        return (
            not self._is_rejecting
            and self._headed is self.scope
            and (cycle is None or (cycle.response_complete and not cycle.more_body and self._active is cycle))
        )

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

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
            # The wait is ours.
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
        """The connection's last answer."""
        raise NotImplementedError
