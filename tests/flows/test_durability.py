"""What was answered is stored, whichever process is killed at that moment."""

import asyncio
import os
import signal
from uuid import UUID

import asyncpg
import httpx
import psutil

from app.dev.embedded import EmbeddedPostgres
from tests.fixtures.application import LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, register
from tests.fixtures.waiting import scaled

EVENT = {"kind": "page.viewed", "properties": {"path": "/"}}
JOB = {"kind": "export.events", "args": {"format": "csv"}}


async def test_what_was_acknowledged_survives_kill_9_of_api_and_postgres(
    live_server: LiveServer, postgres: EmbeddedPostgres, database_url: str
) -> None:
    base = await live_server()
    events: list[UUID] = []
    jobs: list[UUID] = []
    async with http_client(base, timeout=scaled(30)) as client:
        person = await register(client)
        writers = [asyncio.create_task(write_events(person, events)) for _ in range(8)]
        writers += [asyncio.create_task(submit_jobs(person, jobs)) for _ in range(8)]
        while len(events) < 100 or len(jobs) < 50:
            assert not any(writer.done() for writer in writers)
            await asyncio.sleep(0.01)
        pid = postgres.pid()
        assert pid is not None
        port = int(base.rpartition(":")[2])
        (server,) = (process for process in psutil.Process().children() if listens(process, port))
        kill_9(server)
        kill_9(psutil.Process(pid))
        assert all(await asyncio.gather(*writers))
    postgres.start()
    connection = await asyncpg.connect(database_url)
    try:
        stored_events = await connection.fetch("SELECT id FROM users.events WHERE user_id = $1", person.id)
        stored_jobs = await connection.fetch("SELECT id FROM jobs.jobs WHERE user_id = $1", person.id)
    finally:
        await connection.close()
    assert set(events) <= {row["id"] for row in stored_events}
    assert set(jobs) <= {row["id"] for row in stored_jobs}


async def write_events(person: Person, acknowledged: list[UUID]) -> bool:
    """Goes on until the server is gone; true then."""
    while True:
        try:
            answer = await person.post("/v1/events", json={"events": [EVENT] * 3})
        except httpx.TransportError:
            return True
        if answer.status_code != 201:
            return answer.status_code == 503
        acknowledged += map(UUID, answer.json()["ids"])


async def submit_jobs(person: Person, acknowledged: list[UUID]) -> bool:
    """The same with jobs."""
    while True:
        try:
            answer = await person.post("/v1/jobs", json=JOB)
        except httpx.TransportError:
            return True
        if answer.status_code != 202:
            return answer.status_code == 503
        acknowledged.append(UUID(answer.json()["id"]))


def listens(process: psutil.Process, port: int) -> bool:
    family = [process, *process.children(recursive=True)]
    return any(at.laddr.port == port for member in family for at in member.net_connections() if at.status == "LISTEN")


def kill_9(process: psutil.Process) -> None:
    for member in [process, *process.children(recursive=True)]:
        os.kill(member.pid, signal.SIGKILL)
