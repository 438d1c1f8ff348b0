"""The error tree. A status and a stable machine code belong to each class; `kernel.http` renders them all.

A module names its own errors by subclassing the status class that fits, in its `errors.py`. The docstring of a class
tells the client what the code means and what to do: it is the text of `/problems`. Any other exception becomes a bare
500.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from app.kernel.validation.field_codes import FieldErrorCode

# sysexits.h: the settings are wrong; restarting without changing them is of no use.
EXIT_CONFIG = 78


@dataclass(frozen=True, slots=True)
class FieldError:
    """One refused place in a request.

    `pointer` is an RFC 6901 JSON pointer as a URI fragment (`#/items/0/name`) for bodies, or `query:limit`,
    `path:user_id`, `header:If-Match` for what is not in the body.
    """

    pointer: str
    detail: str
    code: FieldErrorCode


def escape_pointer(part: object) -> str:
    """One part of a JSON pointer (RFC 6901, section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


# Refused places that one answer names.
MAX_ERRORS = 20
PROBLEM_MEDIA_TYPE = "application/problem+json"


class AppError(Exception):
    """The server failed. The request may have had its effect; the operator finds the cause by `request_id`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal server error"
    # False: operators meet it in logs and commands; no request is answered with it.
    in_api: ClassVar[bool] = True

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def as_problem(self, request_id: str) -> dict[str, Any]:
        """The body of its answer (RFC 9457)."""
        content: dict[str, Any] = {
            "type": f"/problems/{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "instance": f"urn:onehop:request:{request_id}",
            "code": self.code,
            "request_id": request_id,
        }
        return content | {"errors": self.errors} if self.errors else content


class BadRequest(AppError):
    """The request is not well-formed. `detail` says where; sending it again unchanged does not help."""

    status = 400
    code = "bad_request"
    title = "Malformed request"


class Unauthenticated(AppError):
    """The request carries no access token. Send one as `Authorization: Bearer <token>`."""

    status = 401
    code = "unauthenticated"
    title = "Authentication required"

    def __init__(self, detail: str | None = None, *, challenge: str = "Bearer") -> None:
        """`challenge` is the `WWW-Authenticate` value (RFC 6750, section 3)."""
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(AppError):
    """The caller is known, but may not do this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(AppError):
    """No resource has this path or id, or it belongs to another user."""

    status = 404
    code = "not_found"
    title = "Resource not found"


class RequestTimeout(AppError):
    """The request did not arrive in time, or too slowly. Send it again."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class Conflict(AppError):
    """The resource is in a state in which this cannot be done. Read it again and decide anew."""

    status = 409
    code = "conflict"
    title = "Conflict with the current state"


class Gone(AppError):
    """The resource existed and has been removed for good."""

    status = 410
    code = "gone"
    title = "Resource gone"


class PreconditionFailed(AppError):
    """The resource has another entity tag than `If-Match` names, or one that `If-None-Match` names. Read it again and
    repeat the change.
    """

    status = 412
    code = "precondition_failed"
    title = "Resource changed since it was read"


class PayloadTooLarge(AppError):
    """The request body has more bytes or holds more values than this call takes."""

    status = 413
    code = "payload_too_large"
    title = "Request body too large"


class TargetTooLong(AppError):
    """The path and query together are longer than the server reads."""

    status = 414
    code = "target_too_long"
    title = "Path and query too long"


class UnsupportedMediaType(AppError):
    """Send the body in a media type that `Accept-Post` or `Accept-Patch` of the answer names, in UTF-8 and without a
    content coding.
    """

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class RangeNotSatisfiable(AppError):
    """The range begins behind the end of the file, whose size `Content-Range` of the answer names."""

    status = 416
    code = "range_not_satisfiable"
    title = "Range not satisfiable"


class Unprocessable(AppError):
    """One or more fields or parameters are not valid. `errors` names each of them by its pointer."""

    status = 422
    code = "validation_failed"
    title = "Invalid request"


class PreconditionRequired(AppError):
    """Send `If-Match` with the entity tag that was read."""

    status = 428
    code = "precondition_required"
    title = "Conditional request required"


class HeadTooLarge(AppError):
    """The header fields are too large or too many. Send fewer or shorter ones."""

    status = 431
    code = "head_too_large"
    title = "Header fields too large"


class UnknownTransferCoding(AppError):
    """Only `Transfer-Encoding: chunked` is understood."""

    status = 501
    code = "unknown_transfer_coding"
    title = "Unknown transfer coding"


class _Retryable(AppError):
    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`retry_after` is in seconds, rounded up by the caller."""
        super().__init__(detail, headers={"Retry-After": str(max(1, retry_after)), **(headers or {})})
        self.retry_after = max(1, retry_after)


class TooManyRequests(_Retryable):
    """The caller's quota is used up. Wait for the seconds of `Retry-After`."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"


class Unavailable(_Retryable):
    """Capacity, or a system that this service depends on, is missing for the moment. Try again after `Retry-After`."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"


class TooManyConnections(Unavailable):
    """The server holds as many connections as it takes. Connect again after `Retry-After`."""

    code = "too_many_connections"
    title = "Connection limit reached"


class InvalidMessage(BadRequest):
    """What came over the connection is not HTTP/1.1 (RFC 9112), or may mean two things."""

    code = "invalid_message"
    title = "Invalid HTTP message"


class OAuthError(AppError):
    """An error of the OAuth endpoints, which have a form of their own (RFC 6749, section 5.2)."""

    status = 400

    def __init__(self, oauth_code: str, description: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(description, headers=headers)
        self.oauth_code = oauth_code


class OAuthClientRefused(OAuthError):
    """A client that is not known, or has not proven to be itself."""

    status = 401

    def __init__(self, description: str) -> None:
        super().__init__("invalid_client", description, headers={"WWW-Authenticate": 'Basic realm="onehop"'})


class DeadlineExceeded(_Retryable):
    """The request took longer than the server allows. It may have had its effect: repeat it with the same
    `Idempotency-Key`.
    """

    status = 504
    code = "deadline_exceeded"
    title = "Request deadline exceeded"


def meaning_of(error_class: type[AppError]) -> str:
    """What the code of a problem means and what to do, in one line."""
    return " ".join((error_class.__doc__ or error_class.title).split())


def problem_classes() -> list[type[AppError]]:
    """The classes that requests are answered with, one for each code and status, by code.

    This is the one table of codes: the document's enum and the pages below `/problems` are made from it. It holds what
    the process has imported, and of that only classes of this program.
    """
    program = __name__.partition(".")[0]
    found: dict[tuple[str, int], type[AppError]] = {}
    waiting = deque[type[AppError]]([AppError])
    while waiting:
        error_class = waiting.popleft()
        if error_class.in_api and error_class.__module__.partition(".")[0] == program:
            # A subclass without a code of its own is one more cause of the same problem.
            found.setdefault((error_class.code, error_class.status), error_class)
        waiting.extend(error_class.__subclasses__())
    # Its endpoints answer in OAuth's form, without a code of ours.
    found = {key: error_class for key, error_class in found.items() if error_class is not OAuthError}
    return [found[key] for key in sorted(found)]
