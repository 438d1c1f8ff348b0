"""Gives up a request that has not begun to answer in time, and a read whose client has gone."""

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.errors import DeadlineExceeded
from app.kernel.fairness.disconnects import watched_var
from app.kernel.fairness.ticket import Overloaded, UploadCount
from app.kernel.observability.watchdog import debugger_seen_at
from app.kernel.request.state import state_of
from app.kernel.settings import HttpSettings

# Most reads are done by then, so that it costs them nothing to be watched.
_WATCHED_AFTER_SECONDS = 0.05
# The body of most requests is there by then. To wait longer would let clients that send nothing hold all slots, and to
# wait for less would have every request compete twice whose head and body come in two packets.
_SLOT_KEPT_SECONDS = 0.05
# Of the server these are at most 64 KiB each.
_MOST_KEPT = 16


class Deadline:
    """Stands behind the response cache, because what comes from memory needs no timer.

    The clock stops when the answer begins, so that a download or a stream may take its time. A route that honours
    `Prefer: wait=N` (RFC 7240) asks for that much more (`extend_deadline`). A write goes on when its client has gone,
    because half of it may be done; but a part of it that has not begun yet may ask to be told
    (`kernel.fairness.disconnects`).
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._seconds = settings.request_timeout
        # Up to Python 3.11 each question for the running loop is a system call.
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        timed = TimedRequest(self._loop, scope, receive, send, self._seconds)
        watched_var.set(timed)
        try:
            await self._app(scope, timed.receive, timed.send)
        except asyncio.CancelledError as error:
            timed.explain(error)
            raise
        finally:
            timed.stop_clock()
            # As in `stop_clock`.
            watched_var.set(None)


class TimedRequest:
    """One request with its clock. What `asyncio.timeout` does, at a quarter of its cost.

    A read whose client goes is given up, unless `on_gone` says otherwise.
    """

    __slots__ = ("_cancelling", "_ends", "_is_gone", "_is_read", "_is_received", "_kept", "_loop", "_pauses_at",
                 "_reason", "_receive", "_seconds", "_send", "_state", "_task", "_timer", "_upload", "_watch",
                 "on_gone")  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, scope: Scope, receive: Receive, send: Send, seconds: float
    ) -> None:
        self._state = state_of(scope)
        self._receive = receive
        self._send = send
        self._loop = loop
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine runs in a task.
        self._task = task
        self._cancelling = task.cancelling()
        self._kept: deque[Message] | None = None
        self._watch: asyncio.Task[None] | None = None
        # Why the request was given up.
        self._reason: type[Exception] | None = None
        self._is_gone = False
        self._is_received = False
        # When the request gives its slot up if its body has not come, and where it counts since it has.
        self._pauses_at = 0.0
        self._upload: UploadCount | None = None
        self.on_gone: Callable[[], object] | None = None
        self._is_read = scope["method"] == "GET"
        self._seconds = seconds
        self._ends = loop.time() + seconds
        if self._is_read and seconds > _WATCHED_AFTER_SECONDS:
            self._timer = loop.call_later(_WATCHED_AFTER_SECONDS, self._start_watch)
        else:
            self._timer = loop.call_later(seconds, self._end)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.stop_clock()
            self._state.release_slot()
        await self._send(message)

    async def receive(self) -> Message:
        if self._kept:
            return self._kept.popleft()
        if self._watch is not None:
            # Two that wait for messages would take them from each other.
            self._watch.cancel()
        return await (self._receive() if self._is_received else self._receive_body())

    async def _receive_body(self) -> Message:
        """The next part of the body. A slot that was given up for it is there again before the whole is passed on.

        Raises:
            Overloaded: there is no slot for it any more.
        """
        pause = None
        if self._upload is None:
            self._pauses_at = self._pauses_at or self._loop.time() + _SLOT_KEPT_SECONDS
            pause = self._loop.call_at(self._pauses_at, self._pause)
        try:
            message = await self._receive()
        finally:
            if pause is not None:
                pause.cancel()
        self._is_received = not message.get("more_body", False)
        if self._upload is not None and self._is_received:
            self._end_upload()
            if message["type"] == "http.request":
                await self._state.acquire_slot()
        return message

    def _pause(self) -> None:
        try:
            self._upload = self._state.pause_slot()
        except Overloaded:
            self.give_up(Overloaded)

    def _end_upload(self) -> None:
        if self._upload is not None:
            (uploads, caller), self._upload = self._upload, None
            uploads.give_back(caller)

    def stop_clock(self) -> None:
        self._end_upload()
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
            # A task keeps its context, and that the request: a circle that only the collector would find.
            self._watch = None

    def extend(self, seconds: float) -> None:
        self._seconds += seconds
        self._ends += seconds

    def tell_when_gone(self, act: Callable[[], object] | None) -> None:
        """Once the body is there, because its reader finds out by itself."""
        self.on_gone = act
        if act is None:
            return
        if self._is_gone:
            act()
        elif self._watch is None and self._is_received:
            self._watch = self._loop.create_task(self._until_disconnect())

    def give_up(self, reason: type[Exception]) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def explain(self, error: asyncio.CancelledError) -> None:
        """Raises the reason, if the request was cancelled for it and for nothing else."""
        if self._reason is not None and self._task.uncancel() <= self._cancelling:
            raise self._reason from error

    def _end(self) -> None:
        """Gives up, unless the request was given more time, or a debugger has held the process meanwhile: then it gets
        its time anew.
        """
        ends = max(self._ends, debugger_seen_at() + self._seconds)
        if ends > self._loop.time():
            self._timer = self._loop.call_at(ends, self._end)
        else:
            self.give_up(DeadlineExceeded)

    def _start_watch(self) -> None:
        self._timer = self._loop.call_at(self._ends, self._end)
        self._watch = self._loop.create_task(self._until_disconnect())

    async def _until_disconnect(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if self._kept is None:
                self._kept = deque()
            self._kept.append(message)
            if len(self._kept) == _MOST_KEPT:
                # A body that is not read must not fill the memory; its sender is not watched then.
                return
        self._is_gone = True
        if self.on_gone is not None:
            self.on_gone()
        elif self._is_read:
            self.give_up(ClientDisconnect)
