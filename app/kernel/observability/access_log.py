"""One line a request."""

from datetime import UTC, datetime
from time import time
from urllib.parse import quote
from uuid import UUID

import orjson

from app.kernel.observability.log_writer import output

UNMATCHED = "unmatched"
"""The route of a request that none was found for, or that did not get so far."""

_LONGEST_PATH = 200


class AccessLog:
    """Makes the lines and leaves them to `output`."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines

    def write(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        user_id: UUID | None,
        *,
        request_id: str,
        actor_id: UUID | None = None,
        trace: str | None = None,
        path: str | None = None,
    ) -> None:
        """Adds the line of one request; `seconds` is how long it took, and `path` is told of one without a route.

        `actor_id` is the administrator that acts for `user_id`.
        """
        milliseconds = round(seconds * 1000, 2)
        if self._json_lines:
            event = {
                "ts": datetime.fromtimestamp(time(), UTC),
                "level": "info",
                "event": "request",
                "request_id": request_id,
                "trace": trace,
                "method": method,
                "route": route,
                "status": status,
                "ms": milliseconds,
                "user_id": user_id,
            }
            if actor_id is not None:
                event["actor_id"] = actor_id
            if path is not None:
                event["path"] = logged_path(path)
            line = orjson.dumps(event)
        else:
            where = route if path is None else f"{route} {logged_path(path)}"
            line = f"{method:6} {status} {milliseconds:8.2f} ms  {where}  {request_id}".encode()
        output.write(line)


def logged_path(path: str) -> str:
    """A path as a client sent it, fit for a log line: no query, printable ASCII without spaces, bounded.

    Percent-encoding keeps line breaks and a terminal's escape sequences out of the log.
    """
    cut = path[:_LONGEST_PATH]
    return quote(cut, errors="backslashreplace") + ("..." if len(path) > len(cut) else "")
