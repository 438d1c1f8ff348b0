"""Recording, listing and counting the events of a user."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from app.kernel.ids import new_id
from app.users.schemas import EventPage, EventsAccepted, SummaryResponse
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget, Recorder
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection

EVENTS = "/v1/events"
MINE = "/v1/users/me/events"
SUMMARY = "/v1/users/me/events/summary"


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


async def record(person: Person, *kinds: str) -> list[str]:
    """Store one event of each kind, each by a request of its own."""
    ids = []
    for kind in kinds:
        answer = await person.post(EVENTS, json={"kind": kind})
        ids += body_of(answer, EventsAccepted, 201)["ids"]
    return ids


async def pages(person: Person, **query: Any) -> list[dict[str, Any]]:
    """All events of a list, page by page."""
    items: list[dict[str, Any]] = []
    while True:
        body = body_of(await person.get(MINE, params=query), EventPage)
        items += body["items"]
        if body["next_cursor"] is None:
            return items
        assert len(body["items"]) == query["limit"]
        query["cursor"] = body["next_cursor"]


async def test_an_event_is_stored_as_it_was_sent(person: Person, budget: Budget) -> None:
    event = {
        "kind": "cart.item_added",
        "occurred_at": "2026-11-01T12:00:00.25+02:00",
        "properties": {"sku": "A-1", "price": 9.5, "tags": ["ü", None, True]},
    }
    with budget(1):
        answer = await person.post(EVENTS, json=event)
    accepted = body_of(answer, EventsAccepted, 201)
    (stored,) = body_of(await person.get(MINE), EventPage)["items"]
    assert accepted == {"accepted": 1, "ids": [stored["id"]]}
    assert stored == {
        "id": stored["id"],
        "kind": "cart.item_added",
        "occurred_at": "2026-11-01T10:00:00.250000Z",
        "properties": event["properties"],
        "created_at": stored["created_at"],
    }
    assert UUID(stored["id"]).version == 7


async def test_an_event_without_time_occurs_now(person: Person) -> None:
    await person.post(EVENTS, json={"kind": "k", "occurred_at": None})
    (stored,) = (await person.get(MINE)).json()["items"]
    assert stored["occurred_at"] == stored["created_at"]
    assert stored["properties"] == {}


async def test_a_batch_is_one_statement(person: Person, budget: Budget) -> None:
    batch = {"events": [{"kind": f"k{i}", "properties": {"i": i}} for i in range(500)]}
    with budget(1):
        answer = await person.post(EVENTS, json=batch)
    accepted = body_of(answer, EventsAccepted, 201)
    stored = await pages(person, limit=100)
    assert accepted == {"accepted": 500, "ids": [event["id"] for event in reversed(stored)]}
    assert [event["properties"]["i"] for event in stored] == list(range(499, -1, -1))


REFUSED_EVENTS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {"#": "missing"}),
    ({"properties": {}}, {"#": "missing"}),
    ({"kind": "k", "events": [{"kind": "k"}]}, {"#": "ambiguous"}),
    ({"events": []}, {"#/events": "too_short"}),
    ({"events": [{"kind": "k"}] * 501}, {"#/events": "too_long"}),
    ({"events": [{"kind": "k"}, {}]}, {"#/events/1/kind": "missing"}),
    ({"kind": "K"}, {"#/kind": "invalid_format"}),
    ({"kind": "1k"}, {"#/kind": "invalid_format"}),
    ({"kind": "k\n"}, {"#/kind": "invalid_format"}),
    ({"kind": ""}, {"#/kind": "invalid_format"}),
    ({"kind": "k" * 65}, {"#/kind": "invalid_format"}),
    ({"kind": None}, {"#/kind": "wrong_type"}),
    ({"kind": "k", "properties": None}, {"#/properties": "wrong_type"}),
    ({"kind": "k", "properties": "{}"}, {"#/properties": "wrong_type"}),
    ({"kind": "k", "properties": {"a": "x" * 8192}}, {"#/properties": "too_large"}),
    ({"kind": "k", "properties": nested(9)}, {"#/properties": "too_deep"}),
    ({"kind": "k", "properties": {"a": 2**64}}, {"#/properties": "number_too_large"}),
    ({"kind": "k", "occurred_at": "2026-11-01"}, {"#/occurred_at": "invalid_datetime"}),
    ({"kind": "k", "occurred_at": "2026-11-01T00:00:00"}, {"#/occurred_at": "invalid_datetime"}),
    ({"kind": "k", "occurred_at": 1234567890}, {"#/occurred_at": "invalid_datetime"}),
    ({"kind": "k", "occurred_at": "1969-12-31T23:59:59Z"}, {"#/occurred_at": "too_small"}),
    ({"kind": "k", "occurred_at": "0001-01-01T00:00:00+14:00"}, {"#/occurred_at": "invalid_datetime"}),
    ({"kind": "k", "occurred_at": "2999-01-01T00:00:00Z"}, {"#/occurred_at": "occurred_at_in_future"}),
    (
        {"events": [{"kind": "k"}, {"kind": "k", "occurred_at": "2999-01-01T00:00:00Z"}]},
        {"#/events/1/occurred_at": "occurred_at_in_future"},
    ),
    ({"kind": "k", "user_id": str(new_id())}, {"#/user_id": "unknown_field"}),
]


async def test_ingest_refuses(person: Person, connection: Connection) -> None:
    for body, refused in REFUSED_EVENTS:
        answer = await person.post(EVENTS, json=body)
        assert problem_of(answer, 422, "validation_failed") == refused, body
    assert await connection.fetchval("SELECT count(*) FROM users.events") == 0


async def test_limits_themselves_are_allowed(person: Person) -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=59)).isoformat()
    for event in (
        {"kind": "k" * 64},
        {"kind": "k", "properties": nested(8)},
        {"kind": "k", "properties": {"a": "x" * (8192 - len('{"a":""}'))}},
        {"kind": "k", "properties": {"a": 2**63 - 1, "b": -(2**63)}},
        {"kind": "k", "occurred_at": "1970-01-01T00:00:00Z"},
        {"kind": "k", "occurred_at": soon},
    ):
        assert (await person.post(EVENTS, json=event)).status_code == 201


async def test_an_idempotency_key_stores_once(person: Person, connection: Connection) -> None:
    headers = {"Idempotency-Key": "order-17"}
    event = {"kind": "order.placed"}
    first = await person.post(EVENTS, json=event, headers=headers)
    again = await person.post(EVENTS, json=event, headers=headers)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    other = await person.post(EVENTS, json={"kind": "order.paid"}, headers=headers)
    problem_of(other, 422, "idempotency_key_reused")
    assert await connection.fetchval("SELECT count(*) FROM users.events") == 1


async def test_parallel_duplicates_store_once(person: Person, connection: Connection) -> None:
    answers = await asyncio.gather(
        *(person.post(EVENTS, json={"kind": "k"}, headers={"Idempotency-Key": "same"}) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert await connection.fetchval("SELECT count(*) FROM users.events") == 1


async def test_parallel_events_are_all_stored(person: Person) -> None:
    answers = await asyncio.gather(*(person.post(EVENTS, json={"kind": f"k{i}"}) for i in range(50)))
    ids = {answer.json()["ids"][0] for answer in answers}
    assert {event["id"] for event in await pages(person, limit=20)} == ids
    assert len(ids) == 50


async def test_the_newest_come_first_and_only_the_own(make_person: MakePerson) -> None:
    ada, eve = await make_person(), await make_person()
    assert body_of(await ada.get(MINE), EventPage) == {"items": [], "next_cursor": None}
    first, second = await record(ada, "first", "second")
    await record(eve, "other")
    body = body_of(await ada.get(MINE), EventPage)
    assert ([event["id"] for event in body["items"]], body["next_cursor"]) == ([second, first], None)


async def test_an_event_is_in_the_list_at_once(person: Person, budget: Budget) -> None:
    for number in range(5):
        (stored,) = await record(person, f"k{number}")
        assert (await person.get(MINE)).json()["items"][0]["id"] == stored
        with budget(0):
            await person.get(MINE)


async def test_pages_fit_together_while_events_come_in(person: Person) -> None:
    batch = {"events": [{"kind": f"k{i}"} for i in range(45)]}
    expected = (await person.post(EVENTS, json=batch)).json()["ids"][::-1]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 10} | ({"cursor": cursor} if cursor else {})
        body = (await person.get(MINE, params=query)).json()
        seen += [event["id"] for event in body["items"]]
        cursor = body["next_cursor"]
        if cursor is None:
            break
        await record(person, "new.one", "new.two")
    assert seen == expected


async def test_the_last_page_is_full_and_says_so(person: Person) -> None:
    await record(person, "a", "b", "c", "d")
    first = (await person.get(MINE, params={"limit": 2})).json()
    second = (await person.get(MINE, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([event["kind"] for event in second["items"]], second["next_cursor"]) == (["b", "a"], None)


async def test_a_cursor_fits_one_list_of_one_person(make_person: MakePerson) -> None:
    ada, eve = await make_person(), await make_person()
    await record(ada, "a", "a", "a")
    cursor = (await ada.get(MINE, params={"limit": 1})).json()["next_cursor"]
    tampered = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for person, query in (
        (eve, {"cursor": cursor}),
        (ada, {"cursor": cursor, "kind": "a"}),
        (ada, {"cursor": tampered}),
        (ada, {"cursor": cursor[:10]}),
        (ada, {"cursor": "AAAA"}),
        (ada, {"cursor": "ü"}),
    ):
        problem_of(await person.get(MINE, params={"limit": 1} | query), 400, "invalid_cursor")


async def test_filters(person: Person) -> None:
    days = [f"2026-11-{day:02}T12:00:00Z" for day in (1, 2, 3, 4)]
    events = [{"kind": kind, "occurred_at": day} for day in days for kind in ("a", "a.b")]
    await person.post(EVENTS, json={"events": events})

    async def found(**query: str) -> list[tuple[str, int]]:
        listed = await pages(person, limit=3, **query)
        return [(event["kind"], int(event["occurred_at"][8:10])) for event in listed]

    assert await found(kind="a") == [("a", 4), ("a", 3), ("a", 2), ("a", 1)]
    assert await found(kind="a.b", since=days[1], until=days[3]) == [("a.b", 3), ("a.b", 2)]
    assert await found(since=days[3]) == [("a.b", 4), ("a", 4)]
    assert await found(until=days[1]) == [("a.b", 1), ("a", 1)]
    assert await found(since="2026-11-04T13:00:00+01:00", kind="a") == [("a", 4)]
    assert await found(since=days[2], until=days[2]) == []
    reversed_ = await person.get(MINE, params={"since": days[2], "until": days[1]})
    assert problem_of(reversed_, 422, "validation_failed") == {"query:since": "invalid_period"}
    assert await found(kind="b") == []


REFUSED_LISTS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"limit": "0"}, {"query:limit": "too_small"}),
    ({"limit": "101"}, {"query:limit": "too_large"}),
    ({"limit": "x"}, {"query:limit": "invalid_number"}),
    ({"kind": "K"}, {"query:kind": "invalid_format"}),
    ({"since": "yesterday"}, {"query:since": "invalid_datetime"}),
    ({"since": "5"}, {"query:since": "invalid_datetime"}),
    ({"offset": "5"}, {"query:offset": "unknown_parameter"}),
    ({"cursor": ""}, {"query:cursor": "too_short"}),
]


async def test_list_refuses(person: Person) -> None:
    for query, refused in REFUSED_LISTS:
        answer = await person.get(MINE, params=query)
        assert problem_of(answer, 422, "validation_failed") == refused, query


async def test_summary_counts_by_day_and_by_hour(person: Person, budget: Budget) -> None:
    times = ["2026-11-01T00:00:00Z", "2026-11-01T23:59:59Z", "2026-11-02T00:00:00Z", "2026-11-02T10:30:00Z"]
    events = [{"kind": kind, "occurred_at": time} for time in times for kind in ("b", "a")]
    await person.post(EVENTS, json={"events": [*events, {"kind": "b", "occurred_at": times[3]}]})
    period = {"since": "2026-11-01T00:00:00Z", "until": "2026-11-03T00:00:00Z"}
    with budget(1):
        answer = await person.get(SUMMARY, params=period | {"bucket": "day"})
    assert body_of(answer, SummaryResponse) == {
        "bucket": "day",
        **period,
        "items": [
            {"starts_at": "2026-11-01T00:00:00Z", "kind": "a", "count": 2},
            {"starts_at": "2026-11-01T00:00:00Z", "kind": "b", "count": 2},
            {"starts_at": "2026-11-02T00:00:00Z", "kind": "a", "count": 2},
            {"starts_at": "2026-11-02T00:00:00Z", "kind": "b", "count": 3},
        ],
    }
    hours = {"bucket": "hour", "since": times[2], "until": "2026-11-02T11:00:00Z"}
    answer = await person.get(SUMMARY, params=hours)
    assert [(item["starts_at"], item["count"]) for item in body_of(answer, SummaryResponse)["items"]] == [
        ("2026-11-02T00:00:00Z", 1),
        ("2026-11-02T00:00:00Z", 1),
        ("2026-11-02T10:00:00Z", 1),
        ("2026-11-02T10:00:00Z", 2),
    ]


async def test_summary_knows_an_event_at_once(person: Person) -> None:
    for count in (1, 2, 3):
        await record(person, "k")
        # On two days if this is midnight.
        assert sum(item["count"] for item in (await person.get(SUMMARY)).json()["items"]) == count


async def test_summary_has_a_default_period(person: Person) -> None:
    for bucket, length in (("day", timedelta(days=30)), ("hour", timedelta(days=2))):
        body = body_of(await person.get(SUMMARY, params={"bucket": bucket}), SummaryResponse)
        assert datetime.fromisoformat(body["until"]) - datetime.fromisoformat(body["since"]) == length


REFUSED_SUMMARIES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"bucket": "week"}, {"query:bucket": "invalid_choice"}),
    ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, {"query:since": "invalid_period"}),
    ({"since": "2024-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, {"query:since": "invalid_period"}),
    (
        {"bucket": "hour", "since": "2026-01-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"},
        {"query:since": "invalid_period"},
    ),
    ({"until": "9999-12-31T23:59:59Z", "since": "1970-01-01T00:00:00Z"}, {"query:since": "invalid_period"}),
]


async def test_summary_refuses(person: Person) -> None:
    for query, refused in REFUSED_SUMMARIES:
        answer = await person.get(SUMMARY, params=query)
        assert problem_of(answer, 422, "validation_failed") == refused, query


async def test_events_of_one_moment_share_statements_and_each_user_sees_the_own_ones(
    make_person: MakePerson, statements: Recorder
) -> None:
    people = [await make_person() for _ in range(4)]
    for person in people:
        assert body_of(await person.get(MINE), EventPage)["items"] == []
    with statements() as seen:
        answers = await asyncio.gather(
            *(person.post(EVENTS, json={"kind": f"kind{n}"}) for n in range(5) for person in people)
        )
    assert len([statement for statement in seen if "INSERT INTO users.events" in statement.sql]) < len(answers)
    for index, person in enumerate(people):
        stored = [body_of(answer, EventsAccepted, 201)["ids"][0] for answer in answers[index :: len(people)]]
        page = body_of(await person.get(MINE), EventPage)
        assert sorted(event["id"] for event in page["items"]) == sorted(stored)


async def test_events_are_found_by_their_properties(person: Person) -> None:
    properties: list[dict[str, Any]] = [
        {"sku": "A-1", "price": 9.5, "sold": True, "a.b": "x"},
        {"sku": "A-1", "price": 5, "tags": ["x"]},
        {"sku": "B", "price": "5"},
        {},
    ]
    ids = []
    for item in properties:
        ids += body_of(await person.post(EVENTS, json={"kind": "a", "properties": item}), EventsAccepted, 201)["ids"]
    for query, found in {
        "property.sku=A-1": [1, 0],
        "property.price=5": [2, 1],
        "property.sku=A-1&property.price=5": [1],
        "property.sku=A-1&kind=b": [],
        "property.sold=true": [0],
        "property.a.b=x": [0],
        "property.sku=": [],
        "property.sku=A-1&limit=1": [1, 0],
        "property.%27%20OR%201%3D1=x": [],
    }.items():
        items: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = (await person.get(f"{MINE}?{query}" + (f"&cursor={cursor}" if cursor else ""))).json()
            items += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
        assert items == [ids[index] for index in found], query
    many = "&".join(f"property.p{number}=x" for number in range(11))
    for wrong in (
        "property=x",
        "property.=x",
        "propertysku=x",
        "property.a=1&property.a=2",
        many,
        "property.a=" + "x" * 257,
    ):
        assert (await person.get(f"{MINE}?{wrong}")).status_code == 422, wrong
