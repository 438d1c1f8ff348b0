"""Heads of answers that are sent many times, rendered once.

An `http.response.start` may carry the body under `whole_body`. Our own server then writes both at once, and sets
`is_sent_whole`; to any other server the message is an ordinary one, and the body has to follow as usual. With it may
come a prepared head under `prepared`, beside `headers` as every server wants them: these begin with the headers of the
prepared one. That spares checking and joining each header for each answer.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from itertools import starmap

from starlette.types import Message, Send

# What a browser must not do with JSON and files; a page brings a policy of its own.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# A response but for the server's own headers: its head without the last line end, and its body.
Finished = tuple[bytes, bytes]
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class PreparedHead:
    """`rendered` is the status line and the lines of `headers`, among them Content-Length if there may be a body."""

    __slots__ = ("headers", "rendered")

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.headers = list(headers)
        status_line = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
        self.rendered = status_line + b"".join(starmap(header_line, headers))


async def send_whole(start: Message, body: bytes, send: Send) -> None:
    """Sends an answer whose body is here already, in one step where that is possible."""
    start["whole_body"] = body
    await send(start)
    if "is_sent_whole" not in start:
        await send({"type": "http.response.body", "body": body})


def header_line(name: bytes, value: bytes) -> bytes:
    """One header as it goes over the wire; `name` is in lower case.

    Raises:
        ValueError: it would break the message.
    """
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError(f"a header cannot be sent: {name!r}")
    return b"%b: %b\r\n" % (name, value)
