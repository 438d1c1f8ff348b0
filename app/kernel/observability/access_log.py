"""One line a request."""

from datetime import UTC, datetime
from time import time
from typing import Protocol
from urllib.parse import quote
from uuid import UUID

import orjson

from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import request_id_var, trace_parent_var

UNMATCHED = "unmatched"
"""The route of a request that none was found for, or that did not get so far."""

_LONGEST_PATH = 200


class _Caller(Protocol):
    """A request's caller, as far as the log tells."""

    @property
    def user_id(self) -> UUID: ...


class AccessLog:
    """Makes the lines and leaves them to `output`."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines

    def write(
        self, method: str, route: str, status: int, seconds: float, caller: _Caller | None, path: str | None
    ) -> None:
        """Adds the line of one request; `seconds` is how long it took, and `path` is told of one without a route."""
        milliseconds = round(seconds * 1000, 2)
        if self._json_lines:
            event = {
                "ts": datetime.fromtimestamp(time(), UTC),
                "level": "info",
                "event": "request",
                "request_id": request_id_var.get(),
                "trace": trace_parent_var.get(),
                "method": method,
                "route": route,
                "status": status,
                "ms": milliseconds,
                "user_id": caller.user_id if caller else None,
            }
            if path is not None:
                event["path"] = logged_path(path)
            line = orjson.dumps(event)
        else:
            where = route if path is None else f"{route} {logged_path(path)}"
            line = f"{method:6} {status} {milliseconds:8.2f} ms  {where}  {request_id_var.get()}".encode()
        output.write(line)


def logged_path(path: str) -> str:
    """A path as a client sent it, fit for a log line: no query, printable ASCII without spaces, bounded.

    Percent-encoding keeps line breaks and a terminal's escape sequences out of the log.
    """
    cut = path[:_LONGEST_PATH]
    return quote(cut, errors="backslashreplace") + ("..." if len(path) > len(cut) else "")
