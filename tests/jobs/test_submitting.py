"""Jobs that are put in at the same moment."""

import asyncio

from tests.fixtures.application import Budget
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection

EXPORT = {"kind": "export.events", "args": {"format": "csv"}}


async def test_jobs_of_one_moment_share_a_commit_and_keep_their_owners(
    make_person: MakePerson, budget: Budget, connection: Connection
) -> None:
    people = [await make_person() for _ in range(3)]
    hot = [await person.get("/v1/overview") for person in people]
    assert [answer.json()["jobs"]["queued"] for answer in hot] == [0, 0, 0]
    with budget(1):
        answers = await asyncio.gather(*(person.post("/v1/jobs", json=EXPORT) for person in people))
    assert [answer.status_code for answer in answers] == [202] * 3
    rows = await connection.fetch("SELECT id::text, user_id FROM jobs.jobs WHERE kind = 'export.events'")
    assert {row["id"]: row["user_id"] for row in rows} == {
        answer.json()["id"]: person.id for person, answer in zip(people, answers, strict=True)
    }
    for person, answer in zip(people, answers, strict=True):
        work = (await person.get("/v1/overview")).json()["jobs"]
        assert (work["queued"], work["recent"][0]["id"]) == (1, answer.json()["id"])


async def test_of_many_with_one_unique_key_one_is_made(person: Person, connection: Connection) -> None:
    unique = EXPORT | {"unique_key": "daily"}
    answers = await asyncio.gather(*(person.post("/v1/jobs", json=body) for body in [unique, EXPORT] * 4))
    assert sorted(answer.status_code for answer in answers[::2]) == [200, 200, 200, 202]
    assert len({answer.json()["id"] for answer in answers[::2]}) == 1
    assert [answer.status_code for answer in answers[1::2]] == [202] * 4
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'export.events'") == 5
