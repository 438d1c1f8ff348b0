"""A server process that ends without losing a request.

SIGTERM or SIGINT: `/readyz` answers 503 while everything else goes on for `drain_delay` seconds, so that balancers send
nothing new; then no connection is accepted any more, and those there are end with their next answer or when they
are silent. SIGUSR1 is for a process whose port is served by another one already: it stops accepting at once.
Whatever has not ended after the grace is cancelled, and at last the process ends whatever is left.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Any, cast

import uvicorn

from app.kernel.errors import EXIT_CONFIG
from app.kernel.observability import exits
from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import get_logger
from app.kernel.observability.watchdog import is_in_debugger, watched_loop
from app.kernel.server.connections import manager_of
from app.kernel.settings import ConnectionSettings

_logger = get_logger(__name__)
RETIRE = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1
_TICK_SECONDS = 0.05
# What comes after the grace: cancelled requests answer, the application closes. Together below five seconds.
_CANCEL_SECONDS = 1.0
_CLOSE_SECONDS = 3.0
LAST_SECONDS = 4.5
_LAST_WORDS_SECONDS = 0.5
# How long a thread that computes in Python keeps the event loop waiting; Python's own 5 ms are five answers.
_SWITCH_SECONDS = 0.0005


class Config(uvicorn.Config):
    """uvicorn's, with the limits of connections and of a standing event loop."""

    def __init__(
        self, app: str, *, connections: ConnectionSettings, grace: float, max_stall: float = 0.0, **options: Any
    ) -> None:
        super().__init__(app, **options)
        self.connections = connections
        self.grace = grace
        self.max_stall = max_stall

    def load(self) -> None:
        """Loads the application in a process that ends when the one above it does."""
        if self.workers > 1 or self.should_reload:
            end_with_parent()
            exits.exit_code = EXIT_CONFIG
        super().load()


def end_with_parent() -> None:
    """Uvicorn's processes would go on for ever after a kill -9 of their parent. Elsewhere than on Linux they do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Server(uvicorn.Server):
    """uvicorn's, with another end."""

    config: Config

    def __init__(self, config: Config, on_started: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._draining = asyncio.Event()
        self._is_retiring = False
        self._last_resort: threading.Timer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Requests find it in their state: what has no end of its own watches it.
        cast("Any", self.lifespan).state["draining"] = self._draining
        with suppress(ValueError, NotImplementedError):
            # Only possible in the main thread.
            asyncio.get_running_loop().add_signal_handler(RETIRE, self.retire)
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    async def main_loop(self) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        with watched_loop(self.config.max_stall):
            await super().main_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if is_in_debugger(threading.get_ident()):
            # The loop stands in a debugger, whose user wants an end instead.
            _leave()
        self._expect_the_end()
        super().handle_exit(sig, frame)

    def retire(self) -> None:
        """Ends at once as far as new connections are concerned, because another process accepts them."""
        self._is_retiring = True
        self.should_exit = True
        self._expect_the_end()

    def _expect_the_end(self) -> None:
        if self._last_resort is None:
            self._last_resort = threading.Timer(self.config.grace + LAST_SECONDS, _leave)
            self._last_resort.daemon = True
            self._last_resort.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.grace
        manager = manager_of(self.server_state, self.config.connections, loop)
        manager.is_draining = True
        self._draining.set()
        for connection in tuple(self.server_state.connections):
            connection.shutdown()
        if not self._is_retiring:
            end_of_listening = min(deadline, loop.time() + self.config.connections.drain_delay)
            await self._until(lambda: self._is_retiring, end_of_listening)
        for server in self.servers:
            server.close()
        for server_socket in sockets or ():
            server_socket.close()
        await self._until(self._is_quiet, deadline, meanwhile=manager.sweep)
        await self._cancel()
        await _within(_CLOSE_SECONDS, self.lifespan.shutdown())

    def _is_quiet(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks

    async def _until(
        self, is_met: Callable[[], bool], deadline: float, *, meanwhile: Callable[[], None] | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        while not is_met() and not self.force_exit and loop.time() < deadline:
            await asyncio.sleep(_TICK_SECONDS)
            if meanwhile is not None:
                meanwhile()

    async def _cancel(self) -> None:
        tasks = tuple(self.server_state.tasks)
        if tasks:
            _logger.error("server.requests_cancelled", requests=len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


async def _within(seconds: float, work: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        _logger.error("server.shutdown_timed_out", seconds=seconds)  # noqa: TRY400 - where it hangs is not here


def _leave() -> None:
    _logger.error("server.process_killed")
    output.flush(_LAST_WORDS_SECONDS)
    os._exit(1)
