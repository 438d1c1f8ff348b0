"""What can go wrong in the users module."""

from app.kernel.errors import FieldError, NotFound, PreconditionFailed, TooManyRequests, Unprocessable
from app.kernel.validation.field_codes import FieldErrorCode


class UserNotFound(NotFound):
    """No user has this id, or the account was closed."""

    code = "user_not_found"
    title = "User not found"


class VersionMismatch(PreconditionFailed):
    """The entity tags in `If-Match` or `If-None-Match` forbid a change of the present version."""


class InvalidEvent(Unprocessable):
    """The event at `place` says that it happens in the future."""

    def __init__(self, place: str) -> None:
        detail = "An event cannot lie in the future."
        super().__init__(errors=[FieldError(f"{place}/occurred_at", detail, "occurred_at_in_future")])


class InvalidExtra(Unprocessable):
    """After a merge, `extra` breaks one of its limits."""

    def __init__(self, detail: str, code: FieldErrorCode) -> None:
        super().__init__(errors=[FieldError("#/extra", detail, code)])


class InvalidPeriod(Unprocessable):
    def __init__(self, detail: str) -> None:
        super().__init__(detail, errors=[FieldError("query:since", detail, "invalid_period")])


class TooManyEvents(InvalidPeriod):
    """More events were stored since the period began than a request reads."""

    def __init__(self, max_events: int) -> None:
        super().__init__(
            f"More than {max_events:,} events were stored since then. Choose a later start, or create a report."
        )


class TooManyEventStreams(TooManyRequests):
    """The caller has as many open streams of events as are allowed. Close one, or wait for `Retry-After`."""

    code = "too_many_event_streams"
    title = "Too many open event streams"
