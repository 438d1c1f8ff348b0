"""What is at an address: a running Onehop, another program, or nothing."""

import errno
import http.client
import json
import socket

from app.kernel.listening import reachable

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


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there now, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        return f"HOST {host} is no address of this machine ({error.strerror})"
    with socket.socket(family, kind, protocol) as probe:
        # The same option as uvicorn's, or a port in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            advice = "" if error.errno == errno.EADDRNOTAVAIL else ". Choose another one by PORT"
            return f"Port {port} on {host} cannot be used: {error.strerror}{advice}"
    return None
