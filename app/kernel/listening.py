"""Where a server of this machine is reached, by the host and the port that it listens on."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound


def base_url(host: str, port: int) -> str:
    """The address of such a server for a browser on this machine."""
    host = reachable(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_address() -> tuple[str, int] | None:
    """Host and port of a TCP socket on which this process listens, or will.

    A server that other programs start, such as a bare `uvicorn`, tells its application neither.
    """
    for entry in Path("/dev/fd").iterdir():
        descriptor = int(entry.name)
        # Closed meanwhile.
        with suppress(OSError):
            # Asked before it is duplicated: what is no socket would leave the duplicate open.
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as candidate:
                if (address := _listening_address_of(candidate)) is not None:
                    return address
    return None


def _listening_address_of(candidate: socket.socket) -> tuple[str, int] | None:
    is_tcp = candidate.family in {socket.AF_INET, socket.AF_INET6} and candidate.type == socket.SOCK_STREAM
    # A reloader has bound it and hands it on; it listens once the application has started.
    if not is_tcp or not (_has(candidate, socket.SO_ACCEPTCONN) or _is_bound_by_server(candidate)):
        return None
    host, port = candidate.getsockname()[:2]
    return host, port


def _is_bound_by_server(candidate: socket.socket) -> bool:
    try:
        candidate.getpeername()
    except OSError:
        # Those of clients are bound too, while they connect, but not with this option.
        return _has(candidate, socket.SO_REUSEADDR) and candidate.getsockname()[1] != 0
    return False


def _has(candidate: socket.socket, option: int) -> bool:
    return bool(candidate.getsockopt(socket.SOL_SOCKET, option))
