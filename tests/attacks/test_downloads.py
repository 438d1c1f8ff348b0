"""One user's downloads and streams, however slowly they are read, leave memory, files and connections to others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import pytest
from fastapi import FastAPI

from app.jobs.service import watching
from app.jobs.service.runtime import _MOST_DOWNLOADS_OF_A_USER as MOST
from app.kernel.fairness.count import FairCount
from tests.attacks.conftest import RawClient
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.times import in_days
from tests.fixtures.waiting import eventually

LATER = {"kind": "export.account", "args": {}, "run_at": in_days(30)}
# More than fits into the buffers of a connection that is not read.
SIZE = 16 * 1024 * 1024
ADD_FILE = """
INSERT INTO jobs.artifacts (job_id, name, user_id, content_type, size, sha256, storage_key, expires_at)
VALUES ($1, 'account.zip', $2, 'application/zip', $3, $4, $5, now() + interval '1 day')
"""


async def file_of(app: FastAPI, connection: Connection, owner: Person) -> str:
    """Path of a file that the owner may download."""
    job = (await owner.post("/v1/jobs", json=LATER)).json()["id"]
    async with app.state.jobs.store.create(UUID(job), UUID(int=1), "account.zip") as (key, file):
        await file.write(bytes(SIZE))
    await connection.execute(ADD_FILE, UUID(job), owner.id, file.size, file.hash.digest(), key)
    return f"/v1/jobs/{job}/artifacts/account.zip"


@asynccontextmanager
async def slow_reader(port: int, path: str, person: Person) -> AsyncIterator[str]:
    """A client that reads nothing behind the status line, which it gives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    token = person.tokens["access_token"]
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    try:
        yield (await asyncio.wait_for(reader.readline(), 60)).decode().strip()
    finally:
        writer.transport.abort()


async def test_slow_readers_of_one_user_are_few(
    raw: RawClient, app: FastAPI, connection: Connection, make_person: MakePerson
) -> None:
    greedy, other = await make_person(), await make_person()
    path, path_of_other = await file_of(app, connection, greedy), await file_of(app, connection, other)
    async with AsyncExitStack() as held:
        found = Counter([await held.enter_async_context(slow_reader(raw.port, path, greedy)) for _ in range(MOST + 4)])
        assert found == {"HTTP/1.1 200 OK": MOST, "HTTP/1.1 429 Too Many Requests": 4}
        problem_of(await greedy.get(path), 429, "too_many_streams")
        assert len((await other.get(path_of_other)).content) == SIZE
    downloads: FairCount = app.state.jobs.downloads
    await eventually(lambda: not len(downloads))
    # What is no stream, or ends before it is one, gives back too.
    for headers, status in (
        ({"Range": "bytes=0-9"}, 206),
        ({"If-None-Match": "*"}, 304),
        ({"Range": "bytes=99999999-"}, 416),
    ):
        assert (await greedy.get(path, headers=headers)).status_code == status
    assert (await greedy.request("HEAD", path)).status_code == 200
    await eventually(lambda: not len(downloads))


async def test_a_file_that_is_gone_counts_no_longer(app: FastAPI, connection: Connection, person: Person) -> None:
    path = await file_of(app, connection, person)
    await connection.execute("UPDATE jobs.artifacts SET storage_key = 'nowhere'")
    for _ in range(MOST + 1):
        problem_of(await person.get(path), 410, "artifact_expired")
    assert len(app.state.jobs.downloads) == 0


def test_any_number_of_callers_leaves_some_for_the_next_one() -> None:
    count = FairCount(64, most_of_one=16)
    taken = dict.fromkeys(range(16), 0)
    for caller in taken:
        while count.take(caller):
            taken[caller] += 1
    assert taken[0] == 13
    assert all(taken.values())
    assert len(count) == sum(taken.values()) <= 64
    for caller, number in taken.items():
        for _ in range(number):
            count.give_back(caller)
    assert len(count) == 0
    assert count.take("next")


async def test_streams_opened_at_one_moment_are_no_more(
    raw: RawClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_OF_A_USER", 2)
    path = (await person.post("/v1/jobs", json=LATER)).headers["location"] + "/events"
    async with AsyncExitStack() as held:
        opened = [held.enter_async_context(slow_reader(raw.port, path, person)) for _ in range(12)]
        found = Counter(await asyncio.gather(*opened))
    assert found == {"HTTP/1.1 200 OK": 2, "HTTP/1.1 429 Too Many Requests": 10}
