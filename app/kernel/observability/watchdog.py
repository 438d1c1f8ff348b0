"""Watches the event loop from beside it: how late it is, and what it does when it does nothing else any more.

A loop that stands at a break point does so on purpose: the time in a debugger does not count.
"""

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import Histogram

from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import get_logger

# sysexits.h: an internal fault. The supervisor may start the process again.
EXIT_STUCK = 70

_logger = get_logger(__name__)
_lag = Histogram(
    "onehop_event_loop_lag_seconds",
    "Delay of an event loop timer in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0),
)
_LAG_SAMPLE_SECONDS = 0.1
# A quarter of a second is felt by every caller.
_TOLD_AFTER_SECONDS = 0.25
# Between two looks no more than this counts: where more has passed, the whole process was stopped, not the loop alone.
_LONGEST_LOOK_SECONDS = 2 * _LAG_SAMPLE_SECONDS
_LAST_WORDS_SECONDS = 1.0
_STACK_FRAMES = 30
# One of these modules is on the stack of a thread that a debugger has stopped: the standard library's, on which those
# of IPython and pudb are built, that of VS Code, or that of PyCharm.
_DEBUGGERS = frozenset({"bdb", "debugpy", "pydevd", "_pydevd_bundle"})


@contextmanager
def watched_loop(max_stall: float) -> Iterator[None]:
    """Inside the block, measures how late the running loop is, and logs its stack once each time it stands still.

    A loop that stands for `max_stall` seconds (0: any time) ends the process with EXIT_STUCK: none of its connections
    would be answered again. Code that keeps the interpreter's lock keeps the watchdog from looking, too.
    """
    watchdog = _Watchdog(max_stall)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


def debugger_seen_at() -> float:
    """The last moment, in seconds of the loop's clock, at which a debugger held this process's loop; 0.0: never."""
    return _last_stop.seen_at


class _LastStop:
    seen_at = 0.0


_last_stop = _LastStop()


class _Watchdog:
    def __init__(self, max_stall: float) -> None:
        self._max_stall = max_stall
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="loop-watchdog", daemon=True)

    def start(self) -> None:
        self._schedule_sample()
        self._thread.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stopped.set()

    def _schedule_sample(self) -> None:
        self._due = monotonic() + _LAG_SAMPLE_SECONDS
        self._timer = self._loop.call_later(_LAG_SAMPLE_SECONDS, self._observe_lag)

    def _observe_lag(self) -> None:
        _lag.observe(max(0.0, monotonic() - self._due))
        self._schedule_sample()

    def _look(self) -> None:
        due, late, is_told = 0.0, 0.0, False
        looked_at = monotonic()
        while not self._stopped.wait(_LAG_SAMPLE_SECONDS):
            before, looked_at = looked_at, monotonic()
            if self._due != due:
                # The beat that is expected now may take as long as this.
                due, late, is_told = self._due, -_LAG_SAMPLE_SECONDS, False
                continue
            if is_in_debugger(self._loop_thread):
                _last_stop.seen_at = looked_at
                continue
            late += min(looked_at - before, _LONGEST_LOOK_SECONDS)
            if late > _TOLD_AFTER_SECONDS and not is_told:
                is_told = True
                self._tell("the event loop stands still", late)
            if 0 < self._max_stall < late and not self._stopped.is_set():
                self._tell("the event loop does not go on, so the process is ended", late)
                output.flush(_LAST_WORDS_SECONDS)
                os._exit(EXIT_STUCK)

    def _tell(self, event: str, late: float) -> None:
        # The frame keeps all its variables alive, so nothing holds it longer than this line.
        stack = traceback.format_stack(sys._current_frames()[self._loop_thread])  # noqa: SLF001 - its documented use
        _logger.warning(event, seconds=round(late, 3), stack="".join(stack[-_STACK_FRAMES:]))


def is_in_debugger(thread: int) -> bool:
    """Whether a debugger has stopped the thread of that number."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - its documented use
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
