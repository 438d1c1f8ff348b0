"""Schemathesis against the running program: all its checks, with log-in and without, in sequences too.

`make fuzz` runs the same for longer, and with another seed each time.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.fixtures.application import ROOT, LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import PASSWORD, Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import scaled

HERE = Path(__file__).parent
SECONDS = os.environ.get("FUZZ_SECONDS")
SEED = os.environ.get("FUZZ_SEED", "1")

pytestmark = [
    pytest.mark.settings(
        APP_IDENTITY_HASH_MEMORY_KIB="1024",
        APP_IDENTITY_HASH_ITERATIONS="1",
        APP_LOG_ACCESS="false",
    ),
    pytest.mark.timeout(scaled(120) + int(SECONDS or 0)),
]


async def run_schemathesis(url: str, *options: str, **variables: str) -> None:
    """Fails with what Schemathesis prints if it finds anything."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run"),
        *(str(ROOT / "docs" / "openapi.json"), "--url", url, "--seed", SEED, "--no-color"),
        *("--generation-database", "none", *options),
        *(() if SECONDS is None else ("--max-time", SECONDS, "--continue-on-failure")),
    ]
    environment = os.environ | variables | {"SCHEMATHESIS_HOOKS": "tests.contract.fuzzing", "FUZZ_URL": url}
    environment["PYTHONPATH"] = str(ROOT)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=HERE, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")


@pytest.fixture
async def admin(base_url: str, connection: Connection) -> Person:
    """A user who may call everything."""
    async with http_client(base_url, timeout=scaled(20)) as client:
        person = await register(client)
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    return person


@pytest.fixture
async def base_url(live_server: LiveServer) -> str:
    return await live_server()


async def test_with_log_in(base_url: str, admin: Person) -> None:
    await run_schemathesis(base_url, FUZZ_EMAIL=admin.email, FUZZ_PASSWORD=PASSWORD)


async def test_without_log_in(base_url: str) -> None:
    await run_schemathesis(base_url, "--phases", "examples,fuzzing")
