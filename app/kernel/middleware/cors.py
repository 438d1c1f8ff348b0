"""CORS by Starlette, with our form of a refusal."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.errors import BadRequest
from app.kernel.http import problem_response
from app.kernel.ids import new_id
from app.kernel.observability.telemetry import request_id_var
from app.kernel.request.state import state_of
from app.kernel.settings import HttpSettings

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_REQUEST_HEADERS = [
    "Authorization",
    "Baggage",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Traceparent",
    "Tracestate",
    "X-Request-ID",
]
_ANSWER_HEADERS = [
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
]
_MAX_AGE_SECONDS = 600


class OriginRefused(BadRequest):
    """A browser asked from an origin, for a method or with a header that this installation does not allow."""

    code = "origin_refused"
    title = "Origin, method or header not allowed"


class Cors(CORSMiddleware):
    """The outermost layer, because errors need its headers too; so a preflight gets its request id here."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_credentials=settings.cors_credentials,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
            max_age=_MAX_AGE_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if state_of(scope).repeated_header is not None:
            # Of two origins none can be believed; the layer behind refuses the request.
            await self.app(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        request_id = new_id().hex
        request_id_var.set(request_id)
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:  # noqa: PLR2004 - any error
            response = problem_response(OriginRefused())
        response.headers["X-Request-ID"] = request_id
        return response
