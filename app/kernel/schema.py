"""Whether a database has the newest schema, told without alembic, whose import takes longer than all else at start."""

import asyncio
import re
from enum import Enum
from functools import cache
from pathlib import Path

import asyncpg

from app.kernel.database import ReadConn
from app.kernel.database.pools import CONNECT_ERRORS, Hosts

_VERSIONS = Path(__file__).resolve().parents[2] / "alembic" / "versions"

# Written by alembic, which lets its name and column be relied upon.
CURRENT_REVISION = "SELECT version_num FROM alembic_version"


class Schema(Enum):
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


async def read_schema(conn: ReadConn) -> Schema:
    """What the database has, compared with what this release knows; an empty one is old."""
    known = await asyncio.to_thread(revisions)
    try:
        current = await conn.fetchval(CURRENT_REVISION)
    except asyncpg.UndefinedTableError:
        return Schema.OLD
    if current == known[-1]:
        return Schema.NEWEST
    return Schema.OLD if current is None or current in known else Schema.NEWER


async def is_newest(dsn: str) -> bool:
    """False for an empty database too.

    Raises:
        ConnectionError: with a reason for the person at the terminal.
    """
    try:
        connection = await Hosts(dsn).connect(timeout=10)
    except CONNECT_ERRORS as error:
        raise ConnectionError(f"PostgreSQL cannot be reached: {str(error) or type(error).__name__}") from error
    try:
        return bool(await connection.fetchval(CURRENT_REVISION) == newest_revision())
    except asyncpg.UndefinedTableError:
        return False
    finally:
        await connection.close()
