"""The data of all measures: people with their events and two finished jobs each, the same for the same numbers."""

from uuid import UUID

import asyncpg

PASSWORD = "correct horse battery staple"  # noqa: S105 - of people that exist for a benchmark.
_PREFIX = "018f0000-0000-7000-8000-"

# Ids are UUIDs of version 7 in form; the moments are whole milliseconds of one fixed week.
_USERS = f"""
    INSERT INTO users.users (id, email, email_verified, display_name, bio, locale, timezone, created_at, updated_at)
    SELECT ('{_PREFIX}' || lpad(to_hex(n), 12, '0'))::uuid, 'person' || n || '@example.com', true, 'Person ' || n,
           'Bench since ' || n, 'en', 'UTC', timestamptz '2026-01-01' + n * interval '1 second',
           timestamptz '2026-01-01' + n * interval '1 second'
    FROM generate_series($1::bigint, $2) AS n
"""
_PREFERENCES = f"""
    INSERT INTO users.preferences (user_id, theme)
    SELECT ('{_PREFIX}' || lpad(to_hex(n), 12, '0'))::uuid, (ARRAY['system', 'light', 'dark'])[n % 3 + 1]
    FROM generate_series($1::bigint, $2) AS n
"""
_ACCOUNTS = f"""
    INSERT INTO identity.accounts (user_id, email, email_canonical, email_verified_at, password_hash)
    SELECT ('{_PREFIX}' || lpad(to_hex(n), 12, '0'))::uuid, 'person' || n || '@example.com',
           'person' || n || '@example.com', now(), $3
    FROM generate_series($1::bigint, $2) AS n
"""
_JOBS = f"""
    INSERT INTO jobs.jobs (id, user_id, kind, lane, state, args, attempt, created_at, run_at, started_at, finished_at)
    SELECT ('018f0001-0000-7000-8000-' || lpad(to_hex(n * 2 + k), 12, '0'))::uuid,
           ('{_PREFIX}' || lpad(to_hex(n), 12, '0'))::uuid, 'export.events', 'default', 2, '{{}}', 1,
           timestamptz '2026-01-02' + n * interval '1 second', timestamptz '2026-01-02' + n * interval '1 second',
           timestamptz '2026-01-02' + n * interval '1 second', timestamptz '2026-01-02' + n * interval '2 seconds'
    FROM generate_series($1::bigint, $2) AS n CROSS JOIN generate_series(0, 1) AS k
"""
# As they come in life: one moment after the other, each of another person.
_EVENTS = f"""
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
    SELECT ('{_PREFIX}' || lpad(to_hex(n), 12, '0'))::uuid,
           ('018f0002-' || lpad(to_hex(k), 4, '0') || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
           (ARRAY['page.viewed', 'search.made', 'document.opened', 'comment.added'])[(n + k) % 4 + 1],
           timestamptz '2026-01-03' + k * interval '1 hour' + n * interval '1 millisecond',
           jsonb_build_object('path', '/documents/' || (n * 7 + k) % 400, 'ms', (n + k * 13) % 900),
           timestamptz '2026-01-03' + k * interval '1 hour' + n * interval '1 millisecond'
    FROM generate_series($3::bigint, $4) AS k CROSS JOIN generate_series($1::bigint, $2) AS n
"""


def user_id(number: int) -> UUID:
    """Of the person of this number, from 1."""
    return UUID(f"{_PREFIX}{number:012x}")


def email(number: int) -> str:
    return f"person{number}@example.com"


async def add_people(
    connection: "asyncpg.Connection[asyncpg.Record]", first: int, last: int, password_hash: str
) -> None:
    await connection.execute(_USERS, first, last)
    await connection.execute(_PREFERENCES, first, last)
    await connection.execute(_ACCOUNTS, first, last, password_hash)
    await connection.execute(_JOBS, first, last)


async def add_events(
    connection: "asyncpg.Connection[asyncpg.Record]", first: int, last: int, first_event: int, last_event: int
) -> None:
    """The events of these numbers for the people `first` to `last`."""
    await connection.execute(_EVENTS, first, last, first_event, last_event)


async def settle(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """What autovacuum would do sooner or later, done before instead of while something is measured."""
    for table in ("users.users", "users.preferences", "users.events", "identity.accounts", "jobs.jobs"):
        await connection.execute(f"VACUUM (ANALYZE) {table}")
    await connection.execute("CHECKPOINT")
