"""The composed read, and what each path may cost."""

import httpx
import pytest
from fastapi import FastAPI

from app.core.schemas import OverviewResponse
from app.kernel.ids import new_id
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget, stored
from tests.fixtures.people import PASSWORD, MakePerson, Person

pytestmark = pytest.mark.smoke

OVERVIEW = "/v1/overview"
EMPTY = {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "recent": []}


async def test_is_composed_of_all_modules(person: Person) -> None:
    events = [{"kind": f"kind.{n}", "occurred_at": f"2026-01-{n + 1:02}T00:00:00Z"} for n in range(12)]
    assert (await person.post("/v1/events", json={"events": events})).status_code == 201
    jobs = [
        (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
        for _ in range(6)
    ]
    body = body_of(await person.get(OVERVIEW), OverviewResponse)
    assert body["user"] == (await person.get("/v1/users/me")).json()
    assert body["preferences"] == (await person.get("/v1/users/me/preferences")).json()
    assert [event["kind"] for event in body["recent_events"]] == [f"kind.{n}" for n in range(11, 1, -1)]
    assert body["recent_events"] == (await person.get("/v1/users/me/events?limit=10")).json()["items"]
    assert body["jobs"] | {"recent": []} == EMPTY | {"queued": 6}
    assert [job["id"] for job in body["jobs"]["recent"]] == [job["id"] for job in reversed(jobs)][:5]


async def test_two_statements_cold_and_none_hot(person: Person, budget: Budget, app: FastAPI) -> None:
    with budget(2):
        cold = await person.get(OVERVIEW)
    redis = app.state.resources.redis
    await stored(app)
    calls = redis.calls
    with budget(0):
        hot = await person.get(OVERVIEW)
        seen = await person.get(OVERVIEW, headers={"If-None-Match": hot.headers["etag"]})
    # Neither the token nor the answer costs a round trip to anywhere.
    assert redis.calls == calls
    assert (cold.status_code, hot.content, hot.headers["etag"]) == (200, cold.content, cold.headers["etag"])
    assert (seen.status_code, seen.content) == (304, b"")


async def test_is_compressed_for_who_accepts_that(person: Person) -> None:
    events = [{"kind": f"kind.{n}"} for n in range(10)]
    await person.post("/v1/events", json={"events": events})
    forms = {}
    for accepted in ("gzip, deflate", "identity", "GZIP;q=0.5", "gzip;q=0, *", "br", "*", "gzip;q=0.0"):
        answer = await person.get(OVERVIEW, headers={"Accept-Encoding": accepted})
        forms[accepted] = (answer.headers.get("content-encoding"), answer.headers["etag"])
        assert answer.headers["vary"] == "accept-encoding"
        assert len(answer.json()["recent_events"]) == 10
    plain, packed = forms["identity"], forms["*"]
    assert plain[0] is None
    assert packed == ("gzip", plain[1][:-1] + '-gzip"')
    assert {name for name, form in forms.items() if form == packed} == {"gzip, deflate", "GZIP;q=0.5", "*"}
    assert {name for name, form in forms.items() if form == plain} == {"identity", "gzip;q=0, *", "br", "gzip;q=0.0"}
    # Each form is unchanged for a client that has it.
    for accepted, etag, status in (
        ("gzip", packed[1], 304),
        ("gzip", plain[1], 200),
        ("br", plain[1], 304),
        ("br", packed[1], 200),
    ):
        answer = await person.get(OVERVIEW, headers={"Accept-Encoding": accepted, "If-None-Match": etag})
        assert answer.status_code == status
        assert answer.headers["vary"] == "accept-encoding"


async def test_the_tag_of_a_compressed_form_names_its_version(person: Person) -> None:
    await person.patch("/v1/users/me", json={"bio": "b" * 1_000})
    answer = await person.get("/v1/users/me")
    assert answer.headers["content-encoding"] == "gzip"
    for status in (200, 412):
        changed = await person.patch("/v1/users/me", json={"bio": "new"}, headers={"If-Match": answer.headers["etag"]})
        assert changed.status_code == status


async def test_any_part_that_changes_is_seen_at_once(person: Person) -> None:
    async def overview() -> dict[str, object]:
        content: dict[str, object] = (await person.get(OVERVIEW)).json()
        return content

    before = await overview()
    await person.patch("/v1/users/me", json={"bio": "new"})
    assert (after := await overview())["user"] != before["user"]
    await person.patch("/v1/users/me/preferences", json={"theme": "dark"})
    assert (then := await overview())["preferences"] != after["preferences"]
    await person.post("/v1/events", json={"kind": "seen"})
    assert (next_one := await overview())["recent_events"] != then["recent_events"]
    await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    assert (await overview())["jobs"] != next_one["jobs"]


async def test_everybody_gets_their_own(make_person: MakePerson) -> None:
    first, second = await make_person(display_name="First"), await make_person(display_name="Second")
    for person, name in ((first, "First"), (second, "Second"), (first, "First")):
        assert (await person.get(OVERVIEW)).json()["user"]["display_name"] == name


async def test_refuses_strangers_and_unknown_parameters(client: httpx.AsyncClient, person: Person) -> None:
    problem_of(await client.get(OVERVIEW), 401, "unauthenticated")
    assert problem_of(await person.get(f"{OVERVIEW}?x=1"), 422, "validation_failed") == {"query:x": "unknown_parameter"}
    # What was refused is not kept.
    problem_of(await person.get(f"{OVERVIEW}?x=1"), 422, "validation_failed")


async def test_what_other_paths_may_cost(client: httpx.AsyncClient, person: Person, budget: Budget) -> None:
    with budget(1):
        answer = await person.post(
            "/v1/users/lookup", json={"ids": [str(new_id()) for _ in range(99)] + [str(person.id)]}
        )
    assert (len(answer.json()["items"]), len(answer.json()["missing"])) == (1, 99)
    with budget(1):
        assert (await person.post("/v1/events", json={"kind": "one"})).status_code == 201
    with budget(1):
        assert (await person.patch("/v1/users/me", json={"bio": "b"})).status_code == 200


async def test_log_in_costs_three_statements(client: httpx.AsyncClient, person: Person, budget: Budget) -> None:
    with budget(3):
        answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    assert answer.status_code == 200


async def test_enqueuing_costs_two_statements_at_most(person: Person, budget: Budget) -> None:
    with budget(1):
        answer = await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    assert answer.status_code == 202
