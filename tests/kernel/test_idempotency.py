"""Idempotency-Key: one effect and one answer, over every failure in between."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Annotated

import asyncpg
import httpx
import pytest
from fastapi import Request, Response

from app.kernel.auth import Require
from app.kernel.database import Tx
from app.kernel.errors import Conflict
from app.kernel.http import Router, Schema, json_response
from app.kernel.http.idempotency import delete_expired_keys, idempotent
from app.kernel.ids import new_id
from app.kernel.request.principal import Principal
from app.kernel.resources import ResourcesDep
from app.main import create_app
from app.settings import Settings
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person, register
from tests.fixtures.servers import Connection
from tests.kernel.conftest import client_of

router = Router()
Writer = Annotated[Principal, Require("events:write")]
PATH = "/test/notes"


class Note(Schema):
    text: str
    seconds: float = 0
    waits: bool = False


class Held:
    """The effect that waits: whether it has begun, and whether it may end. Anew for each test, as its event loop is."""

    entered: asyncio.Event
    go_on: asyncio.Event


@router.post(PATH)
async def add_note(request: Request, principal: Writer, resources: ResourcesDep, body: Note) -> Response:
    async def effect(tx: Tx) -> Response:
        identifier = new_id()
        await tx.execute("INSERT INTO notes VALUES ($1, $2)", identifier, body.text)
        await asyncio.sleep(body.seconds)
        if body.waits:
            Held.entered.set()
            await Held.go_on.wait()
        if body.text == "refused":
            raise Conflict
        headers = {"Location": f"{PATH}/{identifier}", "X-Other": "not replayed"}
        return json_response({"id": identifier, "secret": f"shown once to {body.text}"}, status=201, headers=headers)

    return await idempotent(request, resources, principal.user_id, operation="test.notes", effect=effect)


@router.post(PATH + "/other")
async def add_other(request: Request, principal: Writer, resources: ResourcesDep) -> Response:
    async def effect(tx: Tx) -> Response:
        return json_response({"other": await tx.fetchval("SELECT 1")}, status=201)

    return await idempotent(request, resources, principal.user_id, operation="test.other", effect=effect)


@pytest.fixture
async def notes(connection: Connection) -> Connection:
    await connection.execute("CREATE TABLE notes (id uuid, text text)")
    Held.entered, Held.go_on = asyncio.Event(), asyncio.Event()
    return connection


@pytest.fixture
async def client(settings: Settings, notes: Connection) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    app.include_router(router)
    async with client_of(app) as client:
        yield client


async def count(notes: Connection) -> int:
    number: int = await notes.fetchval("SELECT count(*) FROM notes")
    return number


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


async def test_replays_the_answer(person: Person, notes: Connection) -> None:
    first = await person.post(PATH, json={"text": "a"}, headers=key("k1"))
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    again = await person.post(PATH, json={"text": "a"}, headers=key('"k1"'))
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["content-type"] == "application/json"
    assert "x-other" not in again.headers
    assert await count(notes) == 1


async def test_without_a_key_each_request_counts(person: Person, notes: Connection) -> None:
    for _ in range(2):
        assert (await person.post(PATH, json={"text": "a"})).status_code == 201
    assert await count(notes) == 2


async def test_another_body_or_query_is_refused(person: Person, notes: Connection) -> None:
    await person.post(PATH, json={"text": "a"}, headers=key("k1"))
    problem_of(await person.post(PATH, json={"text": "b"}, headers=key("k1")), 422, "idempotency_key_reused")
    assert await count(notes) == 1


async def test_a_key_belongs_to_caller_and_route(person: Person, client: httpx.AsyncClient, notes: Connection) -> None:
    other = await register(client)
    answers = [
        await person.post(PATH, json={"text": "a"}, headers=key("k1")),
        await other.post(PATH, json={"text": "a"}, headers=key("k1")),
        await person.post(PATH + "/other", headers=key("k1")),
    ]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert not any("idempotent-replayed" in answer.headers for answer in answers)
    assert await count(notes) == 2


async def test_hundred_at_once_have_one_effect(person: Person, notes: Connection) -> None:
    body = {"text": "a", "seconds": 0.05}
    answers = await asyncio.gather(*(person.post(PATH, json=body, headers=key("k1")) for _ in range(100)))
    assert await count(notes) == 1
    codes = {answer.status_code for answer in answers}
    # The pool may be too small for all of them; that is told apart.
    assert codes <= {201, 409, 503}
    made = [answer for answer in answers if answer.status_code == 201]
    assert {answer.json()["id"] for answer in made} == {str(await notes.fetchval("SELECT id FROM notes"))}
    assert sum("idempotent-replayed" not in answer.headers for answer in made) == 1
    for answer in answers:
        if answer.status_code == 409:
            problem_of(answer, 409, "request_in_progress")


async def test_while_the_first_runs_the_second_is_told(person: Person, notes: Connection) -> None:
    body = {"text": "a", "waits": True}
    slow = asyncio.create_task(person.post(PATH, json=body, headers=key("k1")))
    await Held.entered.wait()
    problem_of(await person.post(PATH, json=body, headers=key("k1")), 409, "request_in_progress")
    Held.go_on.set()
    assert (await slow).status_code == 201
    assert await count(notes) == 1


async def test_a_refused_effect_releases_the_key(person: Person, notes: Connection) -> None:
    problem_of(await person.post(PATH, json={"text": "refused"}, headers=key("k1")), 409, "conflict")
    assert await count(notes) == 0
    assert (await person.post(PATH, json={"text": "a"}, headers=key("k1"))).status_code == 201
    # Also a request that never got as far as its effect.
    problem_of(await person.post(PATH, json={"text": 1}, headers=key("k2")), 422, "validation_failed")
    assert (await person.post(PATH, json={"text": "b"}, headers=key("k2"))).status_code == 201


async def test_a_cancelled_effect_releases_the_key(person: Person, notes: Connection) -> None:
    task = asyncio.create_task(person.post(PATH, json={"text": "a", "waits": True}, headers=key("k1")))
    await Held.entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    answer = await person.post(PATH, json={"text": "b"}, headers=key("k1"))
    assert answer.status_code == 201
    assert await count(notes) == 1


async def test_an_expired_key_is_free_again(person: Person, notes: Connection, client: httpx.AsyncClient) -> None:
    await person.post(PATH, json={"text": "a"}, headers=key("k1"))
    kept = await notes.fetchval("SELECT expires_at - created_at = interval '24 hours' FROM kernel.idempotency_keys")
    assert kept is True
    await notes.execute(
        "UPDATE kernel.idempotency_keys SET created_at = created_at - interval '1 day', expires_at = now()"
    )
    answer = await person.post(PATH, json={"text": "b"}, headers=key("k1"))
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)
    assert await count(notes) == 2


async def test_expired_keys_are_removed(settings: Settings, notes: Connection) -> None:
    app = create_app(settings)
    async with client_of(app):
        resources = app.state.resources
        insert = """
            INSERT INTO kernel.idempotency_keys (caller, operation, key, request_hash, created_at, expires_at)
            SELECT 'c', 'o', n::text, '', now(), now() + CASE WHEN n <= 3 THEN 0 ELSE 1 END * interval '1 hour'
              FROM generate_series(1, 5) AS n"""
        await notes.execute(insert)
        async with resources.db.transaction("test.clean") as tx:
            assert await delete_expired_keys(tx, 10) == 3
    assert await notes.fetchval("SELECT array_agg(key ORDER BY key) FROM kernel.idempotency_keys") == ["4", "5"]


async def test_neither_key_nor_answer_can_be_read_in_the_database(person: Person, notes: Connection) -> None:
    await person.post(PATH, json={"text": "alice"}, headers=key("my-own-key"))
    row: asyncpg.Record | None = await notes.fetchrow("SELECT * FROM kernel.idempotency_keys")
    assert row is not None
    assert "my-own-key" not in str(dict(row))
    assert b"shown once" not in row["body"]
    assert b"alice" not in row["body"]


@pytest.mark.parametrize("text", ["", "x" * 256, "ünicode", "tab\there", '""'])
async def test_keys_that_are_none(person: Person, notes: Connection, text: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (person.headers | key(text)).items()]
    answer = await person.client.post(PATH, json={"text": "a"}, headers=headers)
    problem_of(answer, 400, "invalid_idempotency_key")
    assert await count(notes) == 0


async def test_the_longest_key(person: Person, notes: Connection) -> None:
    assert (await person.post(PATH, json={"text": "a"}, headers=key("x" * 255))).status_code == 201


@pytest.mark.settings(APP_HTTP_IDEMPOTENCY_KEYS="256")
async def test_what_is_kept_of_a_caller_is_bounded_and_nothing_kept_is_lost(
    person: Person, client: httpx.AsyncClient, notes: Connection
) -> None:
    def slice_of(key: str) -> str:
        return sha256(key.encode()).hexdigest()[:2]

    keys = [f"k{number}" for number in range(1000)]
    # One key of each slice is kept; the second is refused and has no effect.
    first, second = next((a, b) for a in keys for b in keys if a < b and slice_of(a) == slice_of(b))
    elsewhere = next(key for key in keys if slice_of(key) != slice_of(first))
    made = await person.post(PATH, json={"text": "a"}, headers={"Idempotency-Key": first})
    refused = await person.post(PATH, json={"text": "b"}, headers={"Idempotency-Key": second})
    problem_of(refused, 429, "quota_exceeded")
    assert refused.headers["retry-after"] == "3600"
    again = await person.post(PATH, json={"text": "a"}, headers={"Idempotency-Key": first})
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (201, made.json(), "true")
    assert (await person.post(PATH, json={"text": "b"}, headers={"Idempotency-Key": elsewhere})).status_code == 201
    other = await register(client)
    assert (await other.post(PATH, json={"text": "b"}, headers={"Idempotency-Key": second})).status_code == 201
    assert (await person.post(PATH, json={"text": "b"})).status_code == 201
    assert await notes.fetchval("SELECT count(*) FROM notes") == 4
    # A key that has ended is claimed anew, and one that was removed makes room.
    await notes.execute("UPDATE kernel.idempotency_keys SET expires_at = now()")
    later = await person.post(PATH, json={"text": "a"}, headers={"Idempotency-Key": first})
    assert (later.status_code, "idempotent-replayed" in later.headers) == (201, False)
    await notes.execute("DELETE FROM kernel.idempotency_keys")
    assert (await person.post(PATH, json={"text": "b"}, headers={"Idempotency-Key": second})).status_code == 201


@pytest.mark.settings(APP_HTTP_IDEMPOTENCY_KEYS="1024")
async def test_a_large_answer_counts_by_its_size(person: Person, notes: Connection) -> None:
    keys = [f"k{number}" for number in range(1000)]
    digits = sha256(b"k0").hexdigest()[:2]
    _, second = [key for key in keys if sha256(key.encode()).hexdigest()[:2] == digits][:2]
    answer = await person.post(PATH, json={"text": "x" * 4096}, headers={"Idempotency-Key": "k0"})
    assert answer.status_code == 201
    problem_of(await person.post(PATH, json={"text": "y"}, headers={"Idempotency-Key": second}), 429, "quota_exceeded")
