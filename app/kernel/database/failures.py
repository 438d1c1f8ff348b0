"""What a driver error means to us."""

import socket
from time import monotonic
from typing import Literal

import asyncpg
from prometheus_client import Counter

from app.kernel.errors import Unavailable, Unprocessable
from app.kernel.observability.telemetry import get_logger

ConstraintKind = Literal["unique", "foreign_key", "check", "not_null", "exclusion"]

_logger = get_logger(__name__)
_refusals_total = Counter(
    "onehop_database_refusals", "Statements and log-ins refused by PostgreSQL, by SQLSTATE.", ["sqlstate"]
)
# What PostgreSQL cannot do for reasons that no request can change, by the beginning of its SQLSTATE, and what an
# operator does about it. The longest beginning that fits counts. A mistake in our SQL (class 42 otherwise) is not here.
_REFUSALS = {
    "08": "Check the network, and any pooler, between here and PostgreSQL.",
    "25006": "DATABASE_URL leads to a read-only server: name the primary, or end its recovery.",
    "26": "A pooler lost a prepared statement: set max_prepared_statements of PgBouncer above 0.",
    "28": "Check the user and the password in DATABASE_URL, and pg_hba.conf.",
    "3D": "The database that DATABASE_URL names does not exist: create it or correct the name.",
    "3F": "The schema is missing: python -m app migrate up",
    "42501": "The role in DATABASE_URL lacks a privilege: grant it, or make the role the owner of the tables.",
    "42703": "The schema is not the newest: python -m app migrate up",
    "42P01": "The schema is not the newest: python -m app migrate up",
    "42P05": "A pooler mixed up prepared statements: set max_prepared_statements of PgBouncer above 0.",
    "53": "PostgreSQL is out of resources.",
    "53100": "The disk of PostgreSQL is full: make room.",
    "53200": "PostgreSQL is out of memory: see work_mem and max_connections.",
    "53300": "PostgreSQL has no connection left: raise max_connections, or lower APP_DATABASE_POOL_SIZE.",
    "55": "Something in PostgreSQL is in use or not ready, such as a table that is being changed.",
    "57": "PostgreSQL is being stopped, started or administered.",
    "58": "PostgreSQL cannot read or write its files: see its log and its disk.",
    "F0": "PostgreSQL's configuration is wrong: see its log.",
    "XX": "PostgreSQL reports an internal error or damaged data: see its log, and check the disk and the backups.",
}
_SECONDS_BETWEEN_LOG_LINES = 10.0
_logged_at: dict[str, float] = {}


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or not in time. Try again after `Retry-After`."""

    code = "database_unavailable"
    title = "Database unavailable"


class StatementTimeout(DatabaseUnavailable):
    """One statement took longer than it may: the database is busy, or the statement reads too much."""


class SessionLost(DatabaseUnavailable):
    """The connection broke: it is unknown whether the last statement, or the commit, was carried out."""


class PoolExhausted(Unavailable):
    """All database connections are in use. Try again after `Retry-After`."""

    code = "pool_exhausted"
    title = "Database connections exhausted"


class OwnConnectionsBusy(PoolExhausted):
    """The caller's other requests hold all connections that it may have; the pool has more."""


class TransactionConflict(Unavailable):
    """Concurrent changes of the same data collided, and nothing was written. Send the request again."""

    code = "transaction_conflict"
    title = "Concurrent update conflict"


class InvalidValue(Unprocessable):
    """The database cannot store a value of the request."""

    code = "invalid_value"
    title = "Value out of range"


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
    if isinstance(error, asyncpg.QueryCanceledError):
        return StatementTimeout("The statement took too long.")
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.TransactionTimeoutError):
        return DatabaseUnavailable("The statement took too long.")
    if isinstance(error, asyncpg.PostgresError) and (action := _operators_action(error)) is not None:
        _report_refusal(error, action)
        return SessionLost() if is_lost_session(error) else DatabaseUnavailable()
    if is_lost_session(error) or isinstance(error, ConnectionError):
        return SessionLost()
    if isinstance(error, _LOST_ANSWER_ERRORS):
        return DatabaseUnavailable()
    return error


def outside_cause(error: BaseException) -> str | None:
    """What is wrong with the server, the way to it or its schema, as a command tells it; None: nothing is."""
    # SQLAlchemy, under which migrations run, wraps what the driver raises.
    while not isinstance(error, asyncpg.PostgresError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
        return f"PostgreSQL was too busy, run it again: {error}"
    if isinstance(error, asyncpg.PostgresError) and (action := _operators_action(error)) is not None:
        return f"PostgreSQL refuses: {error}. {action}"
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


def _operators_action(error: asyncpg.PostgresError) -> str | None:
    """What an operator has to do about an error that is the server's fault; None: it is not."""
    sqlstate = error.sqlstate or ""
    return next((_REFUSALS[sqlstate[:length]] for length in (5, 2) if sqlstate[:length] in _REFUSALS), None)


def _report_refusal(error: asyncpg.PostgresError, action: str) -> None:
    """Counts each refusal, and logs one of its kind now and then: every request meets it as long as it lasts."""
    sqlstate = str(error.sqlstate)
    _refusals_total.labels(sqlstate).inc()
    now = monotonic()
    if now - _logged_at.get(sqlstate, -_SECONDS_BETWEEN_LOG_LINES) < _SECONDS_BETWEEN_LOG_LINES:
        return
    _logged_at[sqlstate] = now
    _logger.error("database.request_refused", sqlstate=sqlstate, error=str(error), action=action)


def _constraint_kind(error: asyncpg.PostgresError) -> ConstraintKind:
    return next((kind for known, kind in _CONSTRAINT_KINDS if isinstance(error, known)), "check")
