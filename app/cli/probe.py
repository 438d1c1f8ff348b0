"""Asks a running Onehop over HTTP."""

import http.client
import json

from app.development import reachable

_SECONDS = 2.0
_MAX_BYTES = 65_536


def get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body; None if nothing answers in HTTP within two seconds. No proxy of the environment is asked."""
    connection = http.client.HTTPConnection(reachable(host), port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_served_by_onehop(host: str, port: int) -> bool:
    """Whether what listens there answers as Onehop does."""
    answer = get(host, port, "/livez")
    try:
        return answer is not None and json.loads(answer[1]) == {"status": "alive"}
    except ValueError:
        return False
