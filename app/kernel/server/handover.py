"""A new server takes over the listening socket of the old one, so that even connections that are not accepted yet
survive.

The old one offers it on a Unix socket of the kernel's name space to processes of the same user (`unix(7)`, SCM_RIGHTS)
and retires when the new one says that it serves.
"""

import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_SERVING = b"s"
_ANSWER_SECONDS = 5.0
# A new process that has not started by then will not.
_START_SECONDS = 300.0
_RETRY_SECONDS = 0.2
_CREDENTIALS = struct.Struct("3i")


def take_over(host: str, port: int) -> tuple[socket.socket, Callable[[], None]] | None:
    """The listening socket of the server that runs there, and what to call once we serve; None if none is offered."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(_name(host, port))
        if not _is_own_user(connection):
            raise PermissionError
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    except OSError:
        connection.close()
        return None
    if not descriptors:
        connection.close()
        return None

    def confirm() -> None:
        with suppress(OSError), connection:
            connection.sendall(_SERVING)

    return socket.socket(fileno=descriptors[0]), confirm


@contextmanager
def offered(server_socket: socket.socket, host: str, port: int, on_taken: Callable[[], None]) -> Iterator[None]:
    """Offers `server_socket` for as long as the block runs; `on_taken` is called in a thread."""
    stopped = threading.Event()
    if sys.platform == "linux":
        threading.Thread(target=_offer, args=(server_socket, _name(host, port), on_taken, stopped), daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _offer(server_socket: socket.socket, name: str, on_taken: Callable[[], None], stopped: threading.Event) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        while not _is_bound(listener, name):
            # The one that we took over from, or one that serves the same port by other means, still has the name.
            if stopped.wait(_RETRY_SECONDS):
                return
        listener.listen(1)
        listener.settimeout(_RETRY_SECONDS)
        while not stopped.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    if _is_own_user(connection) and _is_serving(connection, server_socket):
                        break
    if not stopped.is_set():
        on_taken()


def _is_bound(listener: socket.socket, name: str) -> bool:
    try:
        listener.bind(name)
    except OSError:
        return False
    return True


def _is_serving(connection: socket.socket, server_socket: socket.socket) -> bool:
    socket.send_fds(connection, [b"l"], [server_socket.fileno()])
    connection.settimeout(_START_SECONDS)
    return connection.recv(1) == _SERVING


def _is_own_user(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.getuid())


def _name(host: str, port: int) -> str:
    return f"\0onehop-{os.getuid()}-{host}-{port}"
