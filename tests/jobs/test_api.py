"""`/v1/jobs` as callers see it."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from fastapi import FastAPI

from app.kernel.ids import new_id
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually, in_time
from tests.jobs.kinds import Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EXPORT = {"kind": "export.events", "args": {"format": "csv"}}
FIELDS = {
    "id",
    "kind",
    "state",
    "attempt",
    "max_attempts",
    "progress",
    "result",
    "error",
    "artifacts",
    "created_at",
    "started_at",
    "finished_at",
}


@pytest.fixture
def test_kinds(running_app: Lifespan, steps: Steps) -> None:
    """Lets callers submit the kinds of `tests.jobs.kinds`."""
    running_app._application.state.jobs.kinds.update(kinds_of(steps))


@pytest.fixture
async def api_worker(settings: Settings, steps: Steps) -> AsyncIterator[Worker]:
    """A worker that knows the real kinds and those of the tests."""
    from app.jobs.api import JOB_KINDS  # noqa: PLC0415

    async with open_worker(settings, {**JOB_KINDS, **kinds_of(steps)}) as worker:
        yield worker
        worker.runner.draining = True


async def submit(person: Person, kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    answer = await person.post("/v1/jobs", json={"kind": kind, "args": {"number": number}, **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def finished(person: Person, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}

    async def is_over() -> bool:
        answer = await person.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=25"})
        assert answer.status_code == 200, answer.text
        job.update(answer.json())
        return job["state"] in {"succeeded", "failed", "cancelled"}

    await eventually(is_over)
    return job


def is_watched(app: FastAPI, job: dict[str, Any], times: int) -> bool:
    """Whether so many requests wait for a change of this job."""
    return len(app.state.jobs.watch._watchers.get(UUID(job["id"]), ())) == times


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


async def test_a_job_continues_the_trace_of_its_request(person: Person, connection: Connection) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await person.post("/v1/jobs", json=EXPORT, headers={"traceparent": trace})).status_code == 202
    assert (await person.post("/v1/jobs", json=EXPORT, headers={"traceparent": "nonsense"})).status_code == 202
    rows = await connection.fetch("SELECT trace_parent FROM jobs.jobs ORDER BY id")
    assert [row["trace_parent"] for row in rows] == [trace, None]


async def test_a_submitted_job_is_answered_with_one_statement(
    person: Person, budget: Any, connection: Connection
) -> None:
    with budget(1):
        answer = await person.post("/v1/jobs", json=EXPORT)
    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == FIELDS
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["attempt"], job["artifacts"]) == ("export.events", "queued", 0, [])
    row = await connection.fetchrow("SELECT id::text, user_id, lane, args FROM jobs.jobs")
    assert row is not None
    assert tuple(row) == (job["id"], person.id, "bulk", '{"format": "csv"}')
    assert (await person.get(f"/v1/jobs/{job['id']}")).json() == job


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "export.events", "args": {}}, "#/args/format"),
        ({"kind": "export.events", "args": {"format": "doc"}}, "#/args/format"),
        ({"kind": "export.events", "args": {"format": "csv", "a/b": 1}}, "#/args/a~1b"),
        ({"kind": "export.events", "args": {"format": "csv", "since": "2026-01-01T00:00:00"}}, "#/args/since"),
        ({"kind": "export.events", "args": {"format": "csv", "since": "0001-01-01T00:00:00+14:00"}}, "#/args/since"),
        (
            {
                "kind": "export.events",
                "args": {"format": "csv", "since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
            },
            "#/args",
        ),
        ({"kind": "email.steal", "args": {}}, "#/kind"),
        ({"kind": "export.events", "args": {"format": "csv", "limit": 2**64}}, "#/args"),
        ({"kind": "export.events"}, "#/args"),
        ({"kind": "export.events", "args": [], "x": 1}, "#/args"),
        ({"kind": "export.events", "args": {"format": "csv"}, "run_at": "tomorrow"}, "#/run_at"),
        ({"kind": "export.events", "args": {"format": "csv"}, "unique_key": ""}, "#/unique_key"),
    ],
)
async def test_what_is_not_valid_is_refused(
    person: Person, connection: Connection, body: dict[str, Any], pointer: str
) -> None:
    answer = await person.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0


async def test_the_same_idempotency_key_is_one_job(person: Person, connection: Connection) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = await person.post("/v1/jobs", json=EXPORT, headers=key)
    again = await person.post("/v1/jobs", json=EXPORT, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = await person.post("/v1/jobs", json=EXPORT | {"unique_key": "x"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 1


async def test_a_living_unique_key_answers_with_its_job(person: Person, make_person: MakePerson, budget: Any) -> None:
    body = EXPORT | {"unique_key": "nightly"}
    first = await person.post("/v1/jobs", json=body)
    with budget(1):
        again = await person.post("/v1/jobs", json=body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    stranger = await (await make_person()).post("/v1/jobs", json=body)
    assert stranger.status_code == 202
    assert stranger.json()["id"] != first.json()["id"]


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


@pytest.mark.usefixtures("test_kinds")
async def test_jobs_of_others_do_not_exist(person: Person, make_person: MakePerson, connection: Connection) -> None:
    job = await submit(person, "test.noop")
    stranger = await make_person()
    before = await connection.fetch("SELECT * FROM jobs.jobs")
    for method, path in [
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/artifacts/x"),
    ]:
        answer = await stranger.request(method, f"/v1/jobs/{job['id']}{path}")
        assert answer.status_code == 404, path
    assert await connection.fetch("SELECT * FROM jobs.jobs") == before
    assert (await stranger.get("/v1/jobs")).json() == {"items": [], "next_cursor": None}


@pytest.mark.usefixtures("test_kinds")
async def test_a_queued_job_is_cancelled_at_once_and_can_be_retried(
    person: Person, connection: Connection, steps: Steps, settings: Settings
) -> None:
    job = await submit(person, "test.noop", 3)
    cancelled = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_finished")
    retried = await person.post(f"/v1/jobs/{job['id']}/retry")
    assert (retried.status_code, retried.json()["state"]) == (202, "queued")
    twice = await person.post(f"/v1/jobs/{job['id']}/retry")
    assert (twice.status_code, twice.json()["code"]) == (409, "job_not_retryable")
    async with open_worker(settings, kinds_of(steps)):
        assert (await finished(person, job["id"]))["result"] == {"number": 3}


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_running_job_is_asked_to_stop(person: Person, steps: Steps) -> None:
    job = await submit(person, "test.wait")
    await eventually(lambda: len(steps.started) == 1)
    answer = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    # By itself it would go on for ten minutes.
    ended = await finished(person, job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("cancelled", "cancelled")
    assert steps.ended == []


@pytest.mark.usefixtures("test_kinds")
async def test_retry_is_refused_while_another_job_holds_the_unique_key(person: Person) -> None:
    first = await submit(person, "test.noop", unique_key="one")
    await person.post(f"/v1/jobs/{first['id']}/cancel")
    await submit(person, "test.noop", unique_key="one")
    answer = await person.post(f"/v1/jobs/{first['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "unique_key_in_use")


@pytest.mark.usefixtures("test_kinds")
async def test_pages_are_stable_while_jobs_arrive(person: Person, make_person: MakePerson) -> None:
    made = [(await submit(person, "test.noop", n))["id"] for n in range(5)]
    first = (await person.get("/v1/jobs", params={"limit": 2})).json()
    await submit(person, "test.noop")
    second = (await person.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    third = (await person.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]})).json()
    seen = [job["id"] for page in (first, second, third) for job in page["items"]]
    assert seen == list(reversed(made))
    assert third["next_cursor"] is None
    stranger = await make_person()
    foreign = await stranger.get("/v1/jobs", params={"cursor": first["next_cursor"]})
    assert (foreign.status_code, foreign.json()["code"]) == (400, "invalid_cursor")
    refiltered = await person.get("/v1/jobs", params={"cursor": first["next_cursor"], "state": "queued"})
    assert refiltered.status_code == 400


@pytest.mark.usefixtures("test_kinds")
async def test_lists_are_filtered_by_state_and_kind(person: Person, connection: Connection) -> None:
    queued = await submit(person, "test.noop")
    scheduled = await submit(person, "test.wait", run_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    cancelled = await submit(person, "test.wait")
    await person.post(f"/v1/jobs/{cancelled['id']}/cancel")
    retrying = await submit(person, "test.flaky")
    await connection.execute("UPDATE jobs.jobs SET attempt = 1 WHERE id = $1", UUID(retrying["id"]))
    assert scheduled["state"] == "scheduled"
    expected = {
        "state=queued": [queued],
        "state=scheduled": [scheduled],
        "state=cancelled": [cancelled],
        "state=retrying": [retrying],
        "state=running": [],
        "kind=test.wait": [cancelled, scheduled],
        "kind=test.wait&state=scheduled": [scheduled],
    }
    for query, jobs in expected.items():
        items = (await person.get(f"/v1/jobs?{query}")).json()["items"]
        assert [job["id"] for job in items] == [job["id"] for job in jobs], query
    for query in ("state=done", "limit=0", "limit=101", "unknown=1"):
        assert (await person.get(f"/v1/jobs?{query}")).status_code == 422


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_long_poll_answers_when_the_job_is_over_or_the_time_is_up(
    app: FastAPI, person: Person, steps: Steps
) -> None:
    job = await submit(person, "test.wait")
    loop = asyncio.get_running_loop()
    began = loop.time()
    # The job does not end meanwhile.
    async with in_time():
        answer = await person.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "respond-async, Wait = 1"})
    assert loop.time() - began > 0.9
    assert answer.json()["state"] in {"queued", "running"}
    assert answer.headers["preference-applied"] == "wait=1"
    waiting = asyncio.create_task(person.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=25"}))
    await eventually(lambda: is_watched(app, job, 1))
    steps.gate.set()
    assert (await waiting).json()["state"] == "succeeded"


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_status_has_an_entity_tag(person: Person) -> None:
    job = await finished(person, (await submit(person, "test.noop"))["id"])
    answer = await person.get(f"/v1/jobs/{job['id']}")
    unchanged = await person.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": answer.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def parse_stream(text: str) -> list[tuple[str, str | None, Any]]:
    """`(event, id, data)` of each event."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return events


class Stream:
    """An answer as it comes; httpx gives only the whole of it."""

    def __init__(self, running: Lifespan, person: Person, path: str) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.text = ""
        self._body = [{"type": "http.request", "body": b"", "more_body": False}]
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", person.headers["Authorization"].encode())],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        self.ended = asyncio.create_task(running(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._body:
            return self._body.pop()
        return await asyncio.get_running_loop().create_future()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        self.text += message.get("body", b"").decode()


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_stream_tells_every_step_and_ends(running_app: Lifespan, person: Person, steps: Steps) -> None:
    job = await submit(person, "test.file", 10)
    stream = Stream(running_app, person, f"/v1/jobs/{job['id']}/events")
    await eventually(lambda: "event: progress" in stream.text)
    steps.gate.set()
    async with in_time():
        await stream.ended
    assert stream.status == 200
    assert stream.headers[b"content-type"].startswith(b"text/event-stream")
    events = parse_stream(stream.text)
    names = [name for name, _, _ in events]
    assert names[0] == "state"
    assert re.findall(r"retry: (\d+)", stream.text) == ["1000"]
    assert "retry" in stream.text.split("\n\n")[0]
    assert b"content-encoding" not in stream.headers
    assert names[-3:] == ["state", "artifact", "done"]
    assert [data for name, _, data in events if name == "progress"] == [{"done": 10, "total": 10, "message": "written"}]
    assert [data["state"] for name, _, data in events if name == "state"][-2:] == ["running", "succeeded"]
    assert events[-1][2] == (await person.get(f"/v1/jobs/{job['id']}")).json()
    again = await person.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": events[0][1] or ""})
    assert [name for name, _, _ in parse_stream(again.text)] == ["state", "progress", "artifact", "done"]


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_resumed_stream_does_not_repeat_what_was_seen(
    app: FastAPI, person: Person, steps: Steps, connection: Connection
) -> None:
    job = await submit(person, "test.wait")
    await eventually(lambda: len(steps.started) == 1)
    version = await connection.fetchval("SELECT version FROM jobs.jobs WHERE id = $1", UUID(job["id"]))
    watching = asyncio.create_task(person.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(version)}))
    await eventually(lambda: is_watched(app, job, 1))
    steps.gate.set()
    events = parse_stream((await watching).text)
    assert [(name, data["state"]) for name, _, data in events] == [("state", "succeeded"), ("done", "succeeded")]
    last = next(version for _, version, _ in events if version is not None)
    # A browser's EventSource comes again after every other answer than this one.
    for method in ("GET", "HEAD"):
        over = await person.request(method, f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last})
        assert (over.status_code, over.content, "content-type" in over.headers) == (204, b"", False)
    for other in ("", "0", f"{last}0", "x"):
        again = await person.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": other})
        assert parse_stream(again.text)[-1][:2] == ("done", last)


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_stream_and_a_long_poll_end_with_their_session(app: FastAPI, person: Person, steps: Steps) -> None:
    job = await submit(person, "test.wait")
    url = f"/v1/jobs/{job['id']}"
    stream = asyncio.create_task(person.get(f"{url}/events"))
    long_poll = asyncio.create_task(person.get(url, headers={"Prefer": "wait=20"}))
    await eventually(lambda: len(steps.started) == 1 and is_watched(app, job, 2))
    assert (await person.post("/v1/auth/logout")).status_code == 204
    steps.gate.set()
    told = await stream
    assert told.status_code == 200
    assert "succeeded" not in told.text
    refused = await long_poll
    assert (refused.status_code, refused.json()["code"]) == (401, "token_revoked")


async def test_callers_need_the_scope(client: Any, person: Person) -> None:
    assert (await client.post("/v1/jobs", json=EXPORT)).status_code == 401
    assert (await client.get("/v1/jobs")).status_code == 401
    assert (await person.get("/v1/jobs")).status_code == 200
