"""The program with a proxy before its database, and a replica of it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from app.dev.embedded import EmbeddedPostgres
from tests.faults.proxy import Proxy
from tests.faults.standby import make_standby
from tests.identity.conftest import clock
from tests.kernel.conftest import open_database, open_redis

__all__ = ["clock", "open_database", "open_redis"]


@pytest.fixture
async def to_postgres(database_url: str) -> AsyncIterator[Proxy]:
    """The way to this test's database."""
    async with Proxy.before(database_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def standby(postgres: EmbeddedPostgres, servers_directory: Path) -> Iterator[EmbeddedPostgres]:
    """A replica of this worker's Postgres. A test may stop, freeze or pause it, as long as it leaves it running."""
    server = make_standby(postgres, servers_directory / f"standby-{uuid4().hex}")
    try:
        yield server
    finally:
        server.stop(mode="immediate")


@pytest.fixture
async def replica_url(standby: EmbeddedPostgres, database_url: str) -> str:
    """This test's database as the replica has it."""
    name = database_url.removeprefix("postgresql://postgres@/").partition("?")[0]
    return standby.dsn(name)
