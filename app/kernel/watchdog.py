"""Watches the event loop from beside it: how late it is, and what it does when it does nothing else any more."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import Histogram

from app.kernel.telemetry import get_logger

_logger = get_logger(__name__)
_lag = Histogram(
    "event_loop_lag_seconds",
    "By how much a timer of the event loop was late.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0),
)
_BEAT_SECONDS = 0.1
_STACK_FRAMES = 30


@contextmanager
def watched_loop(longest: float) -> Iterator[None]:
    """Inside the block, measures how late the running loop is, and logs its stack when it stands for `longest`
    seconds: once for each time, and while it still stands.
    """
    watchdog = _Watchdog(longest)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class _Watchdog:
    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="loop-watchdog", daemon=True)

    def start(self) -> None:
        self._next_beat()
        self._thread.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stopped.set()

    def _next_beat(self) -> None:
        self._due = monotonic() + _BEAT_SECONDS
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        _lag.observe(max(0.0, monotonic() - self._due))
        self._next_beat()

    def _look(self) -> None:
        told = 0.0
        while not self._stopped.wait(_BEAT_SECONDS):
            due = self._due
            late = monotonic() - due
            if late > self._longest and due != told:
                told = due
                # The frame keeps all its variables alive, so nothing holds it longer than this line.
                stack = traceback.format_stack(sys._current_frames()[self._loop_thread])  # noqa: SLF001 - its documented use
                _logger.warning(
                    "the event loop stands still", seconds=round(late, 3), stack="".join(stack[-_STACK_FRAMES:])
                )
