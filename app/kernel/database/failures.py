"""What a driver error means to us."""

import socket
from typing import Literal

import asyncpg

from app.kernel.errors import Unavailable, Unprocessable
from app.kernel.telemetry import get_logger

ConstraintKind = Literal["unique", "foreign_key", "check", "not_null", "exclusion"]

_logger = get_logger(__name__)
# SQLSTATE: connection, authorisation, name of the database, privilege, resources, operator, system.
_OUTSIDE = ("08", "28", "3D", "42501", "53", "57", "58")


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"
    title = "The database cannot answer at the moment"


class SessionLost(DatabaseUnavailable):
    """The connection broke: nobody knows whether the last statement, or the commit, was carried out."""


class PoolExhausted(Unavailable):
    code = "pool_exhausted"
    title = "All database connections are busy"


class TransactionConflict(Unavailable):
    """Concurrent transactions collided (SQLSTATE 40001, 40P01, or a plan invalidated by DDL); a retry may succeed."""

    code = "transaction_conflict"
    title = "Concurrent changes collided"


class InvalidValue(Unprocessable):
    """Postgres refused a value that the edge let through."""

    code = "invalid_value"
    title = "A value is outside what can be stored"


class ConstraintViolated(Exception):
    """A statement broke a constraint. `queries.py` turns the constraint's name into the module's own error."""

    def __init__(self, constraint: str, kind: ConstraintKind) -> None:
        super().__init__(f"{kind}: {constraint}")
        self.constraint = constraint
        self.kind = kind


def translate(error: Exception) -> Exception:  # noqa: PLR0911 - a table, read from top to bottom
    """The error of ours that a driver error means."""
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return ConstraintViolated(error.constraint_name or error.column_name or "", _constraint_kind(error))
    if isinstance(error, asyncpg.DataError):
        return InvalidValue()
    if isinstance(
        error,
        asyncpg.SerializationError | asyncpg.DeadlockDetectedError | asyncpg.InvalidCachedStatementError,
    ):
        return TransactionConflict()
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError | asyncpg.TransactionTimeoutError):
        return DatabaseUnavailable("The statement took too long.")
    if isinstance(error, asyncpg.InsufficientResourcesError):
        _logger.error("postgres is out of resources", error=type(error).__name__)
        return DatabaseUnavailable()
    if is_lost_session(error) or isinstance(error, ConnectionError):
        return SessionLost()
    if isinstance(error, _LOST_ANSWER_ERRORS):
        return DatabaseUnavailable()
    return error


def outside_cause(error: BaseException) -> str | None:
    """What is wrong with the server, the way to it or its schema, for whoever runs a command; None: nothing is."""
    # SQLAlchemy, under which migrations run, wraps what the driver raises.
    while not isinstance(error, asyncpg.PostgresError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return "The database lacks the newest schema: python -m app migrate up"
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
        return f"PostgreSQL was too busy, run it again: {error}"
    if isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith(_OUTSIDE):
        return f"PostgreSQL refuses: {error}"
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return f"PostgreSQL cannot be reached: {str(error) or type(error).__name__}"
    return None


def is_lost_session(error: Exception) -> bool:
    """Whether the server ended the session, is going away, or has become read-only."""
    return isinstance(error, _LOST_SESSION_ERRORS)


def is_broken(error: Exception) -> bool:
    """Whether the connection is of no use any more, which says nothing of another one."""
    # asyncpg calls it an internal error if a server's farewell comes before it is asked anything.
    return is_lost_session(error) or isinstance(
        error, ConnectionError | asyncpg.InterfaceError | asyncpg.InternalClientError
    )


_LOST_SESSION_ERRORS = (
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
_LOST_ANSWER_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_CONSTRAINT_KINDS: tuple[tuple[type[asyncpg.PostgresError], ConstraintKind], ...] = (
    (asyncpg.UniqueViolationError, "unique"),
    (asyncpg.ForeignKeyViolationError, "foreign_key"),
    (asyncpg.CheckViolationError, "check"),
    (asyncpg.NotNullViolationError, "not_null"),
    (asyncpg.ExclusionViolationError, "exclusion"),
)


def _constraint_kind(error: asyncpg.PostgresError) -> ConstraintKind:
    return next((kind for known, kind in _CONSTRAINT_KINDS if isinstance(error, known)), "check")
