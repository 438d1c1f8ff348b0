"""One line a request."""

from datetime import UTC, datetime
from time import time
from typing import Any
from urllib.parse import quote

import orjson

from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import request_id_var, trace_parent_var

UNMATCHED = "unmatched"
"""The route of a request that none was found for, or that did not get so far."""

_LONGEST_PATH = 200


class AccessLog:
    """Makes the lines and leaves them to `output`."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines

    def write(self, method: str, route: str, status: int, seconds: float, scope: Any) -> None:
        """Adds the line of one request; `seconds` is how long it took."""
        milliseconds = round(seconds * 1000, 2)
        path = logged_path(scope["path"]) if route == UNMATCHED else None
        if self._json_lines:
            principal = scope.get("principal")
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
                "user_id": principal.user_id if principal else None,
            }
            if path is not None:
                event["path"] = path
            line = orjson.dumps(event)
        else:
            where = route if path is None else f"{route} {path}"
            line = f"{method:6} {status} {milliseconds:8.2f} ms  {where}  {request_id_var.get()}".encode()
        output.write(line)


def logged_path(path: str) -> str:
    """A path as a client sent it, fit for a log line: no query, printable ASCII without spaces, bounded.

    Percent-encoding keeps line breaks and a terminal's escape sequences out of the log.
    """
    cut = path[:_LONGEST_PATH]
    return quote(cut, errors="backslashreplace") + ("..." if len(path) > len(cut) else "")
