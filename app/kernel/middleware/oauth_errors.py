"""Problems of the OAuth endpoints in OAuth's form, whether a layer, the form, the framework or the route raised them.

The server below does the same with what it refuses by itself.
"""

import orjson
from starlette.types import Message, Send

from app.kernel.errors import PROBLEM_MEDIA_TYPE
from app.kernel.oauth_errors import MEDIA_TYPE, oauth_error

_PROBLEM = (b"content-type", PROBLEM_MEDIA_TYPE.encode())
_FIRST_ERROR = 400


class OAuthErrors:
    """One answer on its way out; one that is no problem goes through as it is. `status`: of what was sent instead of a
    problem, else 0.
    """

    __slots__ = ("_send", "_start", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= _FIRST_ERROR and _PROBLEM in message["headers"]:
                # Problems are whole, and their body is the next message.
                self._start = message
                return
        elif self._start is not None:
            start, self._start = self._start, None
            if not message["body"]:
                # To HEAD.
                await self._send(start)
                await self._send(message)
                return
            self.status, body = oauth_error(orjson.loads(message["body"]))
            changed = {b"content-type": MEDIA_TYPE.encode(), b"content-length": b"%d" % len(body)}
            headers = [(name, changed.get(name, value)) for name, value in start["headers"]]
            await self._send({"type": start["type"], "status": self.status, "headers": headers})
            message = {"type": message["type"], "body": body}
        await self._send(message)
