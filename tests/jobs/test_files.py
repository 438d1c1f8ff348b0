"""Files of jobs as callers download them: whole, compressed, in parts, under conditions, and gone."""

import hashlib
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest

from app.kernel.ids import new_id
from app.worker import Worker
from tests.fixtures.people import MakePerson, Person
from tests.jobs.calls import finished, submit
from tests.jobs.kinds import Steps

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
EXPORT = {"kind": "export.events", "args": {"format": "csv"}}


async def insert_events(connection: Connection, user_id: UUID, count: int) -> None:
    await connection.execute(
        """
        INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
        SELECT $1, gen_random_uuid(), 'page.viewed', now() - n * interval '1 s', jsonb_build_object('n', n),
               now() - n * interval '1 s'
        FROM generate_series(1, $2::integer) AS n
        """,
        user_id,
        count,
    )


async def test_an_export_becomes_a_file(person: Person, api_worker: Worker, connection: Connection) -> None:
    await insert_events(connection, person.id, 1500)
    await insert_events(connection, new_id(), 3)
    job = await finished(person, (await person.post("/v1/jobs", json=EXPORT)).json()["id"])
    assert (job["state"], job["result"], job["error"]) == ("succeeded", {"rows": 1500}, None)
    assert job["progress"] == {"done": 1500, "total": 1500, "message": None}
    (artifact,) = job["artifacts"]
    assert (artifact["name"], artifact["content_type"]) == ("events.csv", "text/csv; charset=utf-8")
    answer = await person.get(f"/v1/jobs/{job['id']}/artifacts/events.csv")
    assert answer.status_code == 200
    assert len(answer.content) == artifact["size"]
    assert hashlib.sha256(answer.content).hexdigest() == artifact["sha256"]
    lines = answer.text.splitlines()
    assert lines[0] == "id,kind,occurred_at,properties,created_at"
    assert len(lines) == 1501
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == ("attachment; filename=\"events.csv\"; filename*=UTF-8''events.csv")
    assert answer.headers["x-content-type-options"] == "nosniff"
    await _has_two_forms(person, f"/v1/jobs/{job['id']}/artifacts/events.csv", answer.content)


async def _has_two_forms(person: Person, url: str, content: bytes) -> None:
    """Compressed for clients that take it, whole or in parts for the others; ranges are those of the plain form."""
    plain, packed = [
        await person.get(url, headers={"Accept-Encoding": coding}) for coding in ("identity, gzip;q=0", "br, gzip")
    ]
    assert plain.content == packed.content == content
    assert (plain.headers["content-length"], plain.headers["accept-ranges"]) == (str(len(content)), "bytes")
    assert (packed.headers["content-encoding"], packed.headers.get("accept-ranges")) == ("gzip", None)
    assert packed.num_bytes_downloaded < len(content) // 2
    tags = [answer.headers["etag"] for answer in (plain, packed)]
    assert tags[1] == tags[0][:-1] + '-gzip"'
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    for tag, coding in zip(tags, ("identity", "gzip"), strict=True):
        headers = {"If-None-Match": tag, "Accept-Encoding": coding}
        unchanged = await person.get(url, headers=headers)
        assert (unchanged.status_code, unchanged.headers["etag"], unchanged.content) == (304, tag, b"")
        assert (await person.get(url, headers={"If-Match": tag})).status_code == 200
        refused = await person.get(url, headers=headers | {"If-Match": '"zz"'})
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
        # A range is no matter of HEAD, and comes after the tags.
        for range_ in ("bytes=0-9", "bytes=999999999-"):
            head = await person.request("HEAD", url, headers={"Range": range_, "Accept-Encoding": coding})
            assert (head.status_code, head.headers["etag"], head.content) == (200, tag, b"")
            assert "content-range" not in head.headers
    part = await person.get(url, headers={"Range": "BYTES=0-9", "Accept-Encoding": "gzip"})
    assert (part.status_code, part.content, part.headers["etag"]) == (206, content[:10], tags[0])
    assert "content-encoding" not in part.headers
    whole = await person.get(url, headers={"Range": "bytes=0-9", "If-Range": tags[1], "Accept-Encoding": "gzip"})
    assert (whole.status_code, whole.content) == (200, content)


async def make_file(person: Person, steps: Steps) -> tuple[str, bytes]:
    steps.gate.set()
    job = await finished(person, (await submit(person, "test.file", 100))["id"])
    return f"/v1/jobs/{job['id']}/artifacts/numbers.txt", "".join(f"{n}\n" for n in range(100)).encode()


@pytest.mark.usefixtures("test_kinds", "api_worker")
@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=5-", 5, 290), ("bytes=-7", 283, 290), ("bytes=280-9999", 280, 290)],
)
async def test_a_part_of_a_file(person: Person, steps: Steps, header: str, start: int, end: int) -> None:
    url, content = await make_file(person, steps)
    answer = await person.get(url, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, content[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/290"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.usefixtures("test_kinds", "api_worker")
@pytest.mark.parametrize("header", ["bytes=9-3", "bytes=a-b", "items=0-1", "bytes=0-1,5-6", "bytes=-"])
async def test_a_range_that_means_nothing_is_ignored(person: Person, steps: Steps, header: str) -> None:
    url, content = await make_file(person, steps)
    answer = await person.get(url, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_conditional_downloads(person: Person, make_person: MakePerson, steps: Steps) -> None:
    url, content = await make_file(person, steps)
    etag = (await person.get(url)).headers["etag"]
    unchanged = await person.get(url, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    outside = await person.get(url, headers={"Range": "bytes=290-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */290")
    assert outside.json()["code"] == "range_not_satisfiable"
    part = await person.get(url, headers={"Range": "bytes=0-0", "If-Range": etag})
    assert part.status_code == 206
    whole = await person.get(url, headers={"Range": "bytes=0-0", "If-Range": '"another"'})
    assert (whole.status_code, whole.content) == (200, content)
    head = await person.request("HEAD", url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "290")
    assert (await person.get(url.replace("numbers", "letters"))).status_code == 404
    assert (await (await make_person()).get(url)).status_code == 404


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_an_expired_file_is_gone(person: Person, steps: Steps, connection: Connection) -> None:
    url, _ = await make_file(person, steps)
    await connection.execute("UPDATE jobs.artifacts SET expires_at = now()")
    answer = await person.get(url)
    assert (answer.status_code, answer.json()["code"]) == (410, "artifact_expired")
