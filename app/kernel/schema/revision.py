"""Whether a database has the newest schema, told without alembic, whose import takes longer than all else at start."""

import asyncio
import re
from collections.abc import Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg

from app.kernel.database import ReadConn
from app.kernel.database.pools import CONNECT_ERRORS, Hosts

_ASK_AGAIN_SECONDS = 0.1
_VERSIONS = Path(__file__).resolve().parents[3] / "alembic" / "versions"

# Written by alembic, which lets its name and column be relied upon.
CURRENT_REVISION = "SELECT version_num FROM alembic_version"


class SchemaState(Enum):
    """`NEWER`: of a release to come, whose migrations the present one works with too."""

    OLD = "old"
    NEWEST = "newest"
    NEWER = "newer"


@cache
def revisions() -> tuple[str, ...]:
    """Those of all files, oldest first; their names begin with their date and number, and they form one line."""
    return tuple(_revision_of(path) for path in sorted(_VERSIONS.glob("*.py"), key=lambda path: path.name))


def newest_revision() -> str:
    return revisions()[-1]


def _revision_of(path: Path) -> str:
    found = re.search(r"""^revision[^=\n]*=\s*["']([^"']+)["']""", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path.name} names no revision")
    return found[1]


async def read_schema(conn: ReadConn) -> SchemaState:
    """What the database has, compared with what this release knows; an empty one is old."""
    known = await asyncio.to_thread(revisions)
    try:
        return _compare(await conn.fetchval(CURRENT_REVISION), known)
    except asyncpg.UndefinedTableError:
        return SchemaState.OLD


def _compare(current: str | None, known: Sequence[str]) -> SchemaState:
    if current == known[-1]:
        return SchemaState.NEWEST
    return SchemaState.OLD if current is None or current in known else SchemaState.NEWER


async def schema_of(dsn: str, *, wait: float = 0) -> SchemaState:
    """What the database at `dsn` has, asked on a connection of its own, once that can be made.

    Raises:
        ConnectionError: it cannot be made within `wait` seconds; with a reason for the person at the terminal.
    """
    connection = await _connect(Hosts(dsn), monotonic() + wait)
    try:
        return _compare(await connection.fetchval(CURRENT_REVISION), revisions())
    except asyncpg.UndefinedTableError:
        return SchemaState.OLD
    finally:
        await connection.close()


async def _connect(hosts: Hosts, deadline: float) -> Any:
    while True:
        try:
            return await hosts.connect(timeout=10)
        except CONNECT_ERRORS as error:
            if monotonic() >= deadline:
                reason = str(error) or type(error).__name__
                raise ConnectionError(f"PostgreSQL cannot be reached: {reason}") from error
        await asyncio.sleep(_ASK_AGAIN_SECONDS)


async def wait_for_schema(dsn: str, seconds: float) -> None:
    """Returns once the database is there and has the newest schema, or that of a release to come.

    Raises:
        ConnectionError: it has not within so many seconds.
    """
    deadline = monotonic() + seconds
    while await schema_of(dsn, wait=deadline - monotonic()) is SchemaState.OLD:
        if monotonic() >= deadline:
            raise ConnectionError(f"The database still lacks migrations of this release after {seconds:.0f} s")
        await asyncio.sleep(_ASK_AGAIN_SECONDS)
