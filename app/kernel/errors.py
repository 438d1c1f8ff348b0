"""The error tree. A status and a stable machine code belong to each class; `kernel.http` renders them all.

A module names its own errors by subclassing the status class that fits, in its `errors.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
    code: str


def escape_pointer(part: object) -> str:
    """One part of a JSON pointer (RFC 6901, section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


# Refused places that one answer names.
MAX_ERRORS = 20
PROBLEM_MEDIA_TYPE = "application/problem+json"


class AppError(Exception):
    """Whatever a caller may be told. Anything else that is raised becomes a bare 500."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal server error"

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
    status = 400
    code = "bad_request"
    title = "The request could not be parsed"


class Unauthenticated(AppError):
    status = 401
    code = "unauthenticated"
    title = "Authentication is required"

    def __init__(self, detail: str | None = None, *, challenge: str = "Bearer") -> None:
        """`challenge` is the `WWW-Authenticate` value (RFC 6750, section 3)."""
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(AppError):
    status = 403
    code = "forbidden"
    title = "This is not allowed"


class NotFound(AppError):
    status = 404
    code = "not_found"
    title = "There is no such resource"


class RequestTimeout(AppError):
    """The request did not arrive in time, or too slowly."""

    status = 408
    code = "request_timeout"
    title = "The request took too long to arrive"


class Conflict(AppError):
    status = 409
    code = "conflict"
    title = "The request conflicts with the present state"


class Gone(AppError):
    status = 410
    code = "gone"
    title = "The resource is no longer available"


class PreconditionFailed(AppError):
    status = 412
    code = "precondition_failed"
    title = "The resource has changed since it was read"


class PayloadTooLarge(AppError):
    status = 413
    code = "payload_too_large"
    title = "The request body is too large"


class TargetTooLong(AppError):
    status = 414
    code = "target_too_long"
    title = "The path and query are too long"


class UnsupportedMediaType(AppError):
    status = 415
    code = "unsupported_media_type"
    title = "The request body has the wrong media type"


class RangeNotSatisfiable(AppError):
    status = 416
    code = "range_not_satisfiable"
    title = "The requested range cannot be served"


class Unprocessable(AppError):
    status = 422
    code = "validation_failed"
    title = "The request was understood but is not valid"


class PreconditionRequired(AppError):
    status = 428
    code = "precondition_required"
    title = "The request must be conditional"


class HeadTooLarge(AppError):
    """The header fields are too large or too many."""

    status = 431
    code = "head_too_large"
    title = "The header fields are too large"


class UnknownTransferCoding(AppError):
    """Only `Transfer-Encoding: chunked` is understood."""

    status = 501
    code = "unknown_transfer_coding"
    title = "The transfer coding is not known here"


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
    """The caller's quota is used up."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"


class Unavailable(_Retryable):
    """Our capacity, or something we depend on, is missing for the moment."""

    status = 503
    code = "unavailable"
    title = "The service cannot answer at the moment"


class OAuthError(AppError):
    """An error of the OAuth endpoints, which have a form of their own (RFC 6749, section 5.2)."""

    status = 400

    def __init__(self, oauth_code: str, description: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(description, headers=headers)
        self.oauth_code = oauth_code


class DeadlineExceeded(_Retryable):
    """The request ran into its own deadline."""

    status = 504
    code = "deadline_exceeded"
    title = "The request took too long"
