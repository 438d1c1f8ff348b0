"""Kinds of events are of the caller's choice, and their number bounds neither an answer nor a report on its own."""

from datetime import UTC, datetime, timedelta

from fastapi import FastAPI

from app.jobs.handlers.report_activity import MAX_REPORT_KINDS, OTHER_KINDS, _data_of
from app.kernel.ids import UserId
from app.users.api import summarise_events
from app.users.records import MAX_SUMMARY_ITEMS
from app.users.schemas import SummaryResponse
from tests.fixtures.answers import body_of
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection

KINDS = 30_000
# Each kind once, and one of them ten times more.
INSERT = """
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties)
    SELECT $1, gen_random_uuid(), 'kind' || CASE WHEN n > $2 THEN 7 ELSE n END, now() - interval '1 hour', '{}'
    FROM generate_series(1, $2 + 10) AS n
"""
MOST_BYTES = 1024 * 1024


async def test_answers_and_reports_are_bounded_and_lose_nothing(
    app: FastAPI, person: Person, connection: Connection
) -> None:
    await connection.execute(INSERT, person.id, KINDS)
    until = datetime.now(UTC) + timedelta(minutes=1)
    year = f"?since={(until - timedelta(days=366)).isoformat()}&until={until.isoformat()}".replace("+00:00", "Z")
    for query in ("", "?bucket=hour", year):
        answer = await person.get(f"/v1/users/me/events/summary{query}")
        assert len(answer.content) < MOST_BYTES
        body = body_of(answer, SummaryResponse)
        assert 10 <= len(body["items"]) <= MAX_SUMMARY_ITEMS
        listed = {item["kind"]: item["count"] for item in body["items"]}
        assert listed["kind7"] == 11
        counted = sum(item["count"] for item in body["items"]) + sum(part["count"] for part in body["others"])
        assert counted == KINDS + 10
        assert len(listed) + sum(part["kinds"] for part in body["others"]) == KINDS
    clock = app.state.resources.clock
    summary = await summarise_events(
        app.state.resources.db, clock, UserId(person.id), bucket="day", since=until - timedelta(days=2), until=until
    )
    data = _data_of(summary)
    assert data["total"] == KINDS + 10
    assert data["kinds"][0] == {"kind": "kind7", "count": 11}
    assert len(data["kinds"]) == MAX_REPORT_KINDS + 1
    assert sum(row["count"] for row in data["kinds"]) == KINDS + 10
    assert data["kinds"][-1]["kind"] == OTHER_KINDS


async def test_few_kinds_are_listed_whole(person: Person) -> None:
    for kind in ("a", "b", "b"):
        assert (await person.post("/v1/events", json={"kind": kind})).status_code == 201
    body = body_of(await person.get("/v1/users/me/events/summary"), SummaryResponse)
    assert [(item["kind"], item["count"]) for item in body["items"]] == [("a", 1), ("b", 2)]
    assert "others" not in body
