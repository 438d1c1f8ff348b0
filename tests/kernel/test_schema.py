"""Waiting for a database that is still being made."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from app.dev.embedded import EmbeddedPostgres
from app.kernel.schema.revision import SchemaState, newest_revision, revisions, schema_of, wait_for_schema
from tests.fixtures.waiting import scaled


async def test_a_process_waits_until_the_newest_schema_is_made(postgres: EmbeddedPostgres) -> None:
    name = f"waited_for_{uuid4().hex}"
    dsn = postgres.dsn(name)
    waiting = asyncio.create_task(wait_for_schema(dsn, scaled(30)))
    with pytest.raises(ConnectionError, match=f'PostgreSQL cannot be reached: database "{name}" does not exist'):
        await schema_of(dsn)

    await asyncio.to_thread(postgres.create_database, name)
    connection = await asyncpg.connect(dsn)
    try:
        assert await schema_of(dsn) is SchemaState.OLD
        await connection.execute("CREATE TABLE alembic_version (version_num text NOT NULL)")
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", revisions()[0])
        with pytest.raises(ConnectionError, match="still lacks migrations of this release after 0 s"):
            await wait_for_schema(dsn, 0)
        assert not waiting.done()

        await connection.execute("UPDATE alembic_version SET version_num = $1", newest_revision())
        await waiting
        # What a later release has made is good enough.
        await connection.execute("UPDATE alembic_version SET version_num = 'of a release to come'")
        assert await schema_of(dsn) is SchemaState.NEWER
        await wait_for_schema(dsn, 0)
    finally:
        await connection.close()
