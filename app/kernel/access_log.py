"""One line a request."""

from datetime import UTC, datetime
from time import time
from typing import Any

import orjson

from app.kernel.output import output
from app.kernel.telemetry import request_id_var, trace_parent_var


class AccessLog:
    """Makes the lines and leaves them to `output`."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines

    def write(self, method: str, route: str, status: int, seconds: float, scope: Any) -> None:
        """Adds the line of one request; `seconds` is how long it took."""
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
        output.write(line)
