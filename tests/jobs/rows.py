"""Rows of jobs as tests want them to be."""

from typing import Any

import orjson

from tests.fixtures.servers import Connection

# What a row has that says nothing else; its id has the same time.
DEFAULTS = {
    "priority": 2,
    "version": 1,
    "attempt": 0,
    "max_attempts": 8,
    "rescues": 0,
    "timeout_seconds": 300,
    "run_at": "2024-06-09T00:00:00Z",
    "created_at": "2024-06-10T02:35:18Z",
    "is_due": True,
}


async def put_in(connection: Connection, number: int, **columns: Any) -> str:
    """A job with an id that grows with `number`; answers it."""
    values: dict[str, Any] = {"kind": "test.noop", "lane": "default", "args": {}, "state": 0} | columns
    values["id"] = f"01900000-0000-7000-8000-{number:012x}"
    if values["state"] >= 2:
        values["finished_at"] = "2026-01-01T00:00:00Z"
    values = DEFAULTS | values
    names = ", ".join(values)
    await connection.execute(
        f"INSERT INTO jobs.jobs ({names}) SELECT {names} FROM jsonb_populate_record(NULL::jobs.jobs, $1) AS r",  # noqa: S608 - names of columns
        orjson.dumps(values).decode(),
    )
    return str(values["id"])
