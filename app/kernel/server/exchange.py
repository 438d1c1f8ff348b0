"""One request and its answer."""

import asyncio
from itertools import starmap
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.kernel.errors import AppError, Unavailable
from app.kernel.heads import PreparedHead, header_line
from app.kernel.server.guard import refusal
from app.kernel.telemetry import get_logger

_logger = get_logger(__name__)


class Exchange(RequestResponseCycle):
    """uvicorn's, except for what becomes of a failure, and for answers that come whole with a prepared head."""

    async def send(self, message: Any) -> None:
        prepared: PreparedHead | None = message.get("prepared")
        if prepared is None or self.response_started or self.access_log or message["whole_body"] is None:
            await super().send(message)
            return
        headers = message["headers"]
        known = len(prepared.headers)
        if headers[:known] != prepared.headers:
            # A layer between has put something in front of them.
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        message["is_sent_whole"] = True
        if self.disconnected:
            return
        lines = [prepared.rendered, *starmap(header_line, self.default_headers), *starmap(header_line, headers[known:])]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", message["whole_body"])
        self.waiting_for_100_continue = False
        self.response_started = self.response_complete = True
        self.transport.write(b"".join(lines))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def take(self, answer: bytes) -> None:
        """Sends a whole answer that was made without the application."""
        if self.disconnected or self.transport.is_closing():
            return
        self.response_started = self.response_complete = True
        if self.keep_alive:
            self.transport.write(answer)
        else:
            self.transport.write(answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            self.transport.close()
        self.on_response()

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            await self._give_up(Unavailable("The process was stopped before the request was done."))
        except Exception:
            _logger.exception("a request failed in the server", path=self.scope["path"])
            await self._give_up(AppError())
        else:
            if not self.response_complete and not self.disconnected:
                _logger.error("a request was not answered", path=self.scope["path"])
                await self._give_up(AppError())
        finally:
            self.on_response = _nothing

    async def _give_up(self, error: AppError) -> None:
        """Half an answer is cut off, so that nobody takes it for a whole one."""
        if self.disconnected or self.response_complete:
            return
        if self.response_started:
            self.transport.abort()
            return
        # Written as it is: the headers that the application would have added are in it.
        self.response_complete = self.response_started = True
        self.keep_alive = False
        self.transport.write(refusal(error, self.default_headers))
        self.transport.close()
        self.on_response()


def _nothing() -> None:
    """Answers are complete only once."""
