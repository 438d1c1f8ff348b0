"""One request and its answer."""

import asyncio

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.kernel.errors import AppError, Unavailable
from app.kernel.http import problem_response
from app.kernel.telemetry import get_logger

_logger = get_logger(__name__)


class Exchange(RequestResponseCycle):
    """uvicorn's, except for what becomes of a failure."""

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
        response = problem_response(error)
        headers = [*response.raw_headers, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": bytes(response.body), "more_body": False})


def _nothing() -> None:
    """Answers are complete only once."""
