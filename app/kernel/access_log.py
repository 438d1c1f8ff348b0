"""One line a request, written by a thread of its own so that a slow terminal or a full pipe never stops the event
loop.
"""

import sys
import threading
from collections import deque
from datetime import UTC, datetime
from time import time
from typing import Any

import orjson

from app.kernel.telemetry import request_id_var, trace_parent_var

_FLUSH_SECONDS = 0.2
_MAX_WAITING_LINES = 50_000


class AccessLog:
    """Lines wait in memory, at most 50,000 of them; what comes beyond is dropped and counted in the next line."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_for_ever, name="access-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Writes what is waiting, then ends."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def write(self, method: str, route: str, status: int, seconds: float, scope: Any) -> None:
        """Adds the line of one request; `seconds` is how long it took."""
        if len(self._lines) >= _MAX_WAITING_LINES:
            self._dropped += 1
            return
        milliseconds = round(seconds * 1000, 2)
        if self._json_lines:
            principal = scope.get("principal")
            line = orjson.dumps(
                {
                    "ts": datetime.fromtimestamp(time(), UTC),
                    "level": "info",
                    "event": "request",
                    "request_id": request_id_var.get(),
                    "trace": trace_parent_var.get(),
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": milliseconds,
                    "user_id": principal.user_id if principal else None,
                }
            )
        else:
            line = f"{method:6} {status} {milliseconds:8.2f} ms  {route}  {request_id_var.get()}".encode()
        self._lines.append(line)

    def _write_for_ever(self) -> None:
        while not self._stopped.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        if self._dropped:
            self._lines.append(orjson.dumps({"level": "warning", "event": "log lines dropped", "lines": self._dropped}))
            self._dropped = 0
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            try:
                sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
                sys.stdout.buffer.flush()
            except (OSError, ValueError):
                # Standard output is gone; serving goes on without a log.
                return
