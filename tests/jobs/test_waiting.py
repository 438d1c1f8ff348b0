"""Waiting for a job: long polls, and streams of its steps."""

import asyncio
import json
import re
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from fastapi import FastAPI

from tests.fixtures.application import Lifespan
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually, in_time
from tests.jobs.calls import finished, submit
from tests.jobs.kinds import Steps

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def is_watched(app: FastAPI, job: dict[str, Any], times: int) -> bool:
    """Whether so many requests wait for a change of this job."""
    return len(app.state.jobs.watch._watchers.get(UUID(job["id"]), ())) == times


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
