"""`python -m app users …` and `python -m app keys …`, as an operator runs them."""

import asyncio
import os
import subprocess
import sys

import httpx
import pytest

from tests.fixtures.answers import problem_of
from tests.fixtures.application import Processes, free_port
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.shell import Shell
from tests.fixtures.terminal import Terminal
from tests.fixtures.waiting import scaled

# What the access log of the program in this process writes would stand between the lines of a command.
pytestmark = pytest.mark.settings(APP_LOG_ACCESS="false")
PASSWORD = "a very long horse 42"


async def test_an_operator_makes_an_administrator(
    shell: Shell, client: httpx.AsyncClient, connection: Connection
) -> None:
    create = ("users", "create-admin", "root@example.com", "--password-stdin")
    status, output = await shell(*create, stdin="short\n")
    assert (status, output) == (1, "It needs at least 8 characters.\n")
    status, output = await shell(*create, stdin=f"{PASSWORD}\n")
    assert (status, output) == (0, "root@example.com is an administrator.\n")
    status, output = await shell(*create, stdin="another very long one")
    assert (status, output) == (1, "There is an account with root@example.com already; nothing changed.\n")
    login = await client.post("/v1/auth/login", json={"email": "root@example.com", "password": PASSWORD})
    body = login.json()
    assert body["user"]["email_verified"] is True
    headers = {"Authorization": f"Bearer {body['tokens']['access_token']}"}
    assert (await client.get("/v1/admin/users", headers=headers)).status_code == 200


async def test_no_password_is_taken_from_the_command_line(shell: Shell, connection: Connection) -> None:
    status, _ = await shell("users", "create-admin", "root@example.com", "--password", PASSWORD)
    assert status == 2
    status, output = await shell("users", "create-admin", "root@example.com", stdin=PASSWORD)
    assert (status, "--password-stdin" in output) == (1, True)
    assert await connection.fetchval("SELECT count(*) FROM identity.accounts") == 0


async def test_a_password_is_asked_for_in_a_terminal(environment: dict[str, str], connection: Connection) -> None:
    """Twice, and never shown."""
    command = ("users", "create-admin", "root@example.com")
    with Terminal(command, environment) as terminal:
        await terminal.answer("Password: ", PASSWORD)
        await terminal.answer("Repeat for confirmation: ", PASSWORD)
        assert await terminal.end() == 0
    assert "root@example.com is an administrator." in terminal.output
    assert PASSWORD not in terminal.output
    assert await connection.fetchval("SELECT count(*) FROM identity.accounts") == 1


@pytest.mark.parametrize("email", ["root", "root@", "a b@example.com", "root@example.com\n"])
async def test_an_address_that_is_none_makes_no_administrator(shell: Shell, connection: Connection, email: str) -> None:
    status, output = await shell("users", "create-admin", email, "--password-stdin", stdin=PASSWORD)
    assert (status, output) == (1, "Not an e-mail address.\n")
    assert await connection.fetchval("SELECT count(*) FROM identity.accounts") == 0


async def test_an_operator_rotates_the_keys(shell: Shell, person: Person, connection: Connection) -> None:
    expected = await connection.fetchval("SELECT kid FROM identity.signing_keys WHERE state = 'next'")
    status, output = await shell("keys", "rotate")
    assert (status, output) == (0, f"{expected} signs from now on; processes take it over within a minute.\n")
    rows = await connection.fetch("SELECT kid, state FROM identity.signing_keys ORDER BY state")
    assert [row["state"] for row in rows] == ["active", "next", "retired"]
    assert rows[0]["kid"] == expected
    assert (await person.get("/v1/auth/sessions")).status_code == 200


ANOTHER_SECRET = "p2Wn8sKd4LqYv7TzR3hXc9MbG6fJa5Ue"


UVICORN = ("uvicorn", "app.main:app", "--port")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("app", "serve"), 78),
        (("app", "serve", "--workers", "2"), 78),
        (("app", "worker"), 78),
        (("app", "seed"), 78),
        (UVICORN, 78),
        # uvicorn's own supervisor ends with 0 whatever happened, but it ends.
        ((*UVICORN, "--workers", "2"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_no_process_waits_for_what_another_secret_has_sealed(
    processes: Processes, person: Person, command: tuple[str, ...], code: int
) -> None:
    """As after a restore from a dump alone."""
    port = str(free_port())
    module, *arguments = [part for part in command for part in ([part, port] if part == "--port" else [part])]
    process = await processes.start(*arguments, module=module, APP_SECRET_KEY=ANOTHER_SECRET, PORT=port)
    assert await asyncio.wait_for(process.wait(), 300) == code
    logged = processes.logged()
    assert "were sealed with another secret" in logged
    for unwanted in ("Traceback", "jobs.worker_ready", "Application startup complete", "admin@example.com"):
        assert unwanted not in logged


DEMO_DATA_FIRST = """
import asyncio
from app.dev.standalone import _company
from app.settings import load_settings

async def main():
    async with _company(load_settings(), {}, shows_welcome=True):
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_first_notices_another_secret_says_it_in_one_sentence(person: Person, environment: dict[str, str]) -> None:
    """A bare `uvicorn` adds the demo data beside the application, which may not have asked for its keys by then."""
    ended = subprocess.run(
        (sys.executable, "-c", DEMO_DATA_FIRST),
        env=os.environ | environment | {"APP_SECRET_KEY": ANOTHER_SECRET},
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(60),
    )
    logged = ended.stdout + ended.stderr
    assert ended.returncode == 78, logged
    assert "were sealed with another secret" in logged
    assert "Traceback" not in logged


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_new_keys_replace_those_of_another_secret(
    shell: Shell, processes: Processes, person: Person, connection: Connection, environment: dict[str, str]
) -> None:
    before = await connection.fetch("SELECT kid, private_sealed FROM identity.signing_keys ORDER BY kid")
    environment["APP_SECRET_KEY"] = ANOTHER_SECRET
    sick = await processes.start("doctor", APP_SECRET_KEY=ANOTHER_SECRET, PORT=str(free_port()))
    assert await asyncio.wait_for(sick.wait(), 300) == 1
    assert "FAIL Secret: APP_SECRET_KEY: the signing keys" in processes.logged()
    for command in (("keys", "rotate"), ("mail", "lift-suppression", person.email)):
        assert (await shell(*command))[0] != 0
    # Nothing has been changed so far.
    assert await connection.fetch("SELECT kid, private_sealed FROM identity.signing_keys ORDER BY kid") == before
    status, output = await shell("keys", "replace")
    active = await connection.fetchval("SELECT kid FROM identity.signing_keys WHERE state = 'active'")
    assert (status, output.split()[0]) == (0, active)
    kids = {row["kid"] for row in await connection.fetch("SELECT kid FROM identity.signing_keys")}
    assert len(kids) == 2
    assert kids.isdisjoint(row["kid"] for row in before)
    well = await processes.start("doctor", APP_SECRET_KEY=ANOTHER_SECRET, PORT=str(free_port()))
    assert await asyncio.wait_for(well.wait(), 300) == 0
    assert "ok   Secret: " in processes.logged()


async def test_a_running_process_keeps_its_keys_when_others_are_sealed_anew(
    shell: Shell, person: Person, client: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    environment["APP_SECRET_KEY"] = ANOTHER_SECRET
    assert (await shell("keys", "replace"))[0] == 0
    assert (await person.get("/v1/auth/sessions")).status_code == 200


async def test_what_another_secret_has_sealed_fails_no_request(
    person: Person, connection: Connection, client: httpx.AsyncClient
) -> None:
    """The answer that was kept for an Idempotency-Key."""
    again = {"Idempotency-Key": "one"}
    body = {"kind": "export.events", "args": {"format": "csv"}}
    assert (await person.post("/v1/jobs", json=body, headers=again)).status_code == 202
    await connection.execute("UPDATE kernel.idempotency_keys SET body = decode(repeat('00', 64), 'hex')")
    problem_of(await person.post("/v1/jobs", json=body, headers=again), 422, "idempotency_key_reused")
