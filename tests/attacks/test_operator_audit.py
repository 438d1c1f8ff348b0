"""Every command that changes rights, credentials, jobs or queues leaves an entry of the operator in an audit trail.

A command needs a decision here: the entry that it leaves, or why none.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import typer

from app.cli import cli
from app.identity.api import OPERATOR_ID
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.shell import Shell

pytestmark = pytest.mark.settings(APP_LOG_ACCESS="false")

ENTRIES: dict[str, str] = {
    "users create-admin": "account_provisioned",
    "keys rotate": "signing_keys_rotated",
    "keys replace": "signing_keys_replaced",
    "jobs retry": "job_retried_by_admin",
    "jobs cancel": "job_cancelled_by_admin",
    "jobs pause": "queue_paused",
    "jobs resume": "queue_resumed",
    "mail lift-suppression": "mail_suppression_lifted",
    "restored": "database_restored",
}
WITHOUT: dict[str, str] = {
    "dev": "starts processes",
    "serve": "starts processes",
    "worker": "starts processes",
    "prepare": "what `dev` runs first; development only",
    "migrate up": "changes the schema, in which trails are",
    "migrate down": "changes the schema, in which trails are",
    "migrate status": "reads",
    "seed": "development only; its accounts have their entries",
    "doctor": "reads",
    "openapi": "reads",
    "config": "reads",
    "metrics": "reads",
    "audit": "reads",
    "jobs list": "an operator can read the database",
    "jobs show": "an operator can read the database",
    "jobs queues": "numbers without persons",
}


def _commands(command: Any, path: str = "") -> set[str]:
    """The names of all commands below, as they are typed."""
    children: dict[str, Any] | None = getattr(command, "commands", None)
    if children is None:
        return {path.strip()}
    return {name for child, below in children.items() for name in _commands(below, f"{path} {child}")}


def test_every_command_has_a_decision() -> None:
    assert _commands(typer.main.get_command(cli)) == ENTRIES.keys() | WITHOUT.keys()
    assert not ENTRIES.keys() & WITHOUT.keys()


async def test_every_such_command_leaves_its_entry(shell: Shell, connection: Connection, person: Person) -> None:
    run_at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"kind": "export.events", "args": {"format": "csv"}, "run_at": run_at}
    made = await person.post("/v1/jobs", json=body)
    assert made.status_code == 202, made.text
    job_id = made.json()["id"]
    commands: list[tuple[tuple[str, ...], set[UUID]]] = [
        (("users", "create-admin", "root@example.com", "--password-stdin"), {OPERATOR_ID}),
        (("keys", "rotate"), {OPERATOR_ID}),
        (("keys", "replace"), {OPERATOR_ID}),
        (("jobs", "cancel", job_id), {OPERATOR_ID, person.id}),
        (("jobs", "retry", job_id), {OPERATOR_ID, person.id}),
        (("jobs", "pause", "bulk"), {OPERATOR_ID}),
        (("jobs", "resume", "bulk"), {OPERATOR_ID}),
        (("mail", "lift-suppression", person.email), {OPERATOR_ID}),
        (("restored", "--nothing-lost"), {OPERATOR_ID}),
    ]
    assert {" ".join(command[: 1 if command[0] == "restored" else 2]) for command, _ in commands} == ENTRIES.keys()
    for command, owners in commands:
        newest = await connection.fetchval("SELECT max(id::text) FROM identity.security_events")
        status, output = await shell(*command, stdin="a very long horse 42\n")
        assert status == 0, (command, output)
        rows = await connection.fetch(
            "SELECT action, user_id, actor_id, user_agent FROM identity.security_events WHERE id::text > $1", newest
        )
        name = command[0] if command[0] == "restored" else " ".join(command[:2])
        assert {row["action"] for row in rows} == {ENTRIES[name]}, command
        assert owners <= {row["user_id"] for row in rows}, command
        assert {row["actor_id"] for row in rows} == {OPERATOR_ID}
        assert all(row["user_agent"].startswith("command line: ") for row in rows)
    root = await connection.fetchval("SELECT user_id FROM identity.accounts WHERE email = 'root@example.com'")
    trail = await connection.fetch("SELECT action FROM identity.security_events WHERE user_id = $1", root)
    assert [row["action"] for row in trail] == ["account_provisioned"]
    status, output = await shell("audit")
    told = [line.split()[1] for line in output.splitlines()]
    assert (status, told) == (0, [ENTRIES[key] for key in (
        "restored", "mail lift-suppression", "jobs resume", "jobs pause", "jobs retry", "jobs cancel", "keys replace",
        "keys rotate", "users create-admin",
    )])  # fmt: skip


async def test_jobs_retried_in_bulk_and_what_changes_nothing(shell: Shell, connection: Connection) -> None:
    status, _ = await shell("jobs", "retry", "--failed", "--kind", "export.events")
    assert status == 0
    row = await connection.fetchrow("SELECT action, data ->> 'jobs' AS jobs FROM identity.security_events")
    assert row is not None
    assert tuple(row) == ("jobs_retried_by_admin", "0")
    assert (await shell("jobs", "cancel", "01a22a48-0b7d-703b-b085-6dd5c99122db"))[0] == 1
    assert await connection.fetchval("SELECT count(*) FROM identity.security_events") == 1
