"""Standard output, written by a thread of its own: a stopped terminal or a full pipe delays no caller that logs."""

import atexit
import os
import sys
import threading
from collections import deque
from time import monotonic, sleep

import orjson
from prometheus_client import Counter

_FLUSH_SECONDS = 0.2
_MAX_WAITING_LINES = 50_000
_LOOK_SECONDS = 0.005
_LAST_WORDS_SECONDS = 2.0

_dropped_total = Counter("onehop_log_dropped_lines", "Log lines dropped because standard output was blocked.")


class Output:
    """Lines wait in memory, at most 50,000 of them; what comes beyond is dropped and counted in the next line."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._is_writing = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Adds a line, which is written within a fifth of a second."""
        if len(self._lines) >= _MAX_WAITING_LINES:
            self._dropped += 1
            _dropped_total.inc()
            return
        self._lines.append(line)
        if self._thread is None:
            self._start()

    def flush(self, seconds: float = _LAST_WORDS_SECONDS) -> None:
        """Returns when everything has been written, or after so many seconds."""
        deadline = monotonic() + seconds
        self._wake.set()
        while (self._lines or self._is_writing) and monotonic() < deadline:
            sleep(_LOOK_SECONDS)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._write_for_ever, name="output", daemon=True)
        self._thread.start()

    def _write_for_ever(self) -> None:
        while True:
            self._wake.wait(_FLUSH_SECONDS)
            self._wake.clear()
            self._is_writing = True
            self._write_waiting()
            self._is_writing = False

    def _write_waiting(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._lines.append(orjson.dumps({"level": "warning", "event": "log lines dropped", "lines": dropped}))
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            _write_all(b"\n".join(lines) + b"\n")


def _write_all(text: bytes) -> None:
    """Past Python's buffer, whose lock the end of the interpreter would wait for in vain while a write is stuck."""
    rest = memoryview(text)
    while rest:
        try:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
        except BlockingIOError:
            # The parent process has made it so.
            sleep(_LOOK_SECONDS)
        except (OSError, ValueError):
            # Standard output is gone, or its disk is full; serving goes on without a log.
            return


output = Output()
atexit.register(output.flush)
