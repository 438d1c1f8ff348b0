"""Where a process listens, found among its open files."""

import os
import socket
import tempfile
from pathlib import Path

from app.kernel.listening import listening_address


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_the_socket_that_listens_is_found_and_no_file_stays_open() -> None:
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(), socket.create_server(("127.0.0.1", 0)):
        before = open_files()
        assert None not in [listening_address() for _ in range(5)]
        assert open_files() == before
    os.close(reader)
    os.close(writer)
