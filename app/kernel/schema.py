"""Whether a database has the newest schema, told without alembic, whose import takes longer than all else at start."""

import re
from pathlib import Path

import asyncpg

from app.kernel.database.pools import CONNECT_ERRORS, Hosts

_VERSIONS = Path(__file__).resolve().parents[2] / "alembic" / "versions"

# Written by alembic, which lets its name and column be relied upon.
CURRENT_REVISION = "SELECT version_num FROM alembic_version"


def newest_revision() -> str:
    """The revision of the last file; their names begin with their date and number, and they form one line."""
    last = max(_VERSIONS.glob("*.py"), key=lambda path: path.name)
    found = re.search(r"""^revision[^=\n]*=\s*["']([^"']+)["']""", last.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{last.name} names no revision")
    return found[1]


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
