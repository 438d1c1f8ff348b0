"""The only way to Postgres: one gateway over one asyncpg pool, with a bound on every wait.

A service opens a unit of work and the gateway decides what it costs and how it fails:

    async with db.read("users.profile") as conn: ...          # statements on one connection, no transaction
    async with db.statement("users.rename") as tx: ...        # exactly one statement: atomic by itself, one round trip
    async with db.transaction("identity.register") as tx: ... # BEGIN … COMMIT
    async with db.snapshot("jobs.export") as conn: ...        # one REPEATABLE READ view, for long exports

No driver exception leaves this package. No session state is left on a connection, so that PgBouncer may stand in
between and so that a released connection needs no reset statement.
"""

from app.kernel.database.batches import in_batches
from app.kernel.database.failures import (
    ConstraintViolated,
    DatabaseUnavailable,
    InvalidValue,
    PoolExhausted,
    SessionLost,
    StatementTimeout,
    TransactionConflict,
)
from app.kernel.database.gateway import Database, Statement
from app.kernel.database.replicas import UNKNOWN_POSITION
from app.kernel.database.retrying import MAX_CONFLICT_RETRIES, retries_conflicts, retries_lost_sessions
from app.kernel.database.time import follow_database_time
from app.kernel.database.units import CopyConn, DirectConn, ReadConn, Row, Tx

__all__ = [
    "MAX_CONFLICT_RETRIES",
    "UNKNOWN_POSITION",
    "ConstraintViolated",
    "CopyConn",
    "Database",
    "DatabaseUnavailable",
    "DirectConn",
    "InvalidValue",
    "PoolExhausted",
    "ReadConn",
    "Row",
    "SessionLost",
    "Statement",
    "StatementTimeout",
    "TransactionConflict",
    "Tx",
    "follow_database_time",
    "in_batches",
    "retries_conflicts",
    "retries_lost_sessions",
]
