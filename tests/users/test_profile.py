"""The account of a user and the public view of others."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.kernel.ids import new_id
from app.users.schemas import LookupResponse, PublicUserResponse, UserResponse
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection

pytestmark = pytest.mark.smoke

ME = "/v1/users/me"
LOOKUP = "/v1/users/lookup"


async def test_me_is_what_was_registered(make_person: MakePerson) -> None:
    person = await make_person(display_name="Ada", locale="en-GB", timezone="Europe/London")
    answer = await person.get(ME)
    me = body_of(answer, UserResponse)
    assert me == {
        "id": str(person.id),
        "email": person.email,
        "email_verified": False,
        "display_name": "Ada",
        "bio": None,
        "avatar_url": None,
        "locale": "en-GB",
        "timezone": "Europe/London",
        "created_at": me["created_at"],
        "updated_at": me["created_at"],
    }
    assert me["created_at"].endswith("Z")
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["etag"] == f'"{person.id.hex}-1"'


async def test_me_costs_one_statement_and_then_none(person: Person, budget: Budget) -> None:
    with budget(1):
        first = await person.get(ME)
    with budget(0):
        second = await person.get(ME)
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]


async def test_me_is_not_sent_twice(person: Person) -> None:
    tag = (await person.get(ME)).headers["etag"]
    answer = await person.get(ME, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)


async def test_head_answers_like_get(person: Person) -> None:
    answer = await person.request("HEAD", ME)
    assert (answer.status_code, answer.content) == (200, b"")


async def test_patch_changes_what_it_names(person: Person, budget: Budget) -> None:
    before = (await person.get(ME)).json()
    changes = {
        "display_name": "Grace Hopper",
        "bio": "Amazing",
        "avatar_url": "https://example.com/a.png",
        "locale": "pt-BR",
        "timezone": "America/Sao_Paulo",
    }
    with budget(1):
        answer = await person.patch(ME, json=changes)
    after = body_of(answer, UserResponse)
    assert after == before | changes | {"updated_at": after["updated_at"]}
    assert after["updated_at"] > before["updated_at"]
    assert answer.headers["etag"] == f'"{person.id.hex}-2"'
    assert (await person.get(ME)).json() == after


async def test_null_clears_and_absence_keeps(person: Person) -> None:
    await person.patch(ME, json={"display_name": "Ada", "bio": "x", "avatar_url": "http://example.com/"})
    await person.patch(ME, json={"bio": None})
    me = (await person.get(ME)).json()
    assert (me["display_name"], me["bio"], me["avatar_url"]) == ("Ada", None, "http://example.com/")
    await person.patch(ME, json={"display_name": None, "avatar_url": None})
    me = (await person.get(ME)).json()
    assert (me["display_name"], me["bio"], me["avatar_url"]) == (None, None, None)


async def test_empty_patch_changes_nothing(person: Person) -> None:
    before = await person.get(ME)
    answer = await person.patch(ME, json={})
    assert (answer.status_code, answer.json()) == (200, before.json())
    assert answer.headers["etag"] == before.headers["etag"]


async def test_patch_takes_a_merge_patch(person: Person) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = await person.patch(ME, content=b'{"bio": "merged"}', headers=headers)
    assert body_of(answer, UserResponse)["bio"] == "merged"
    headers = {"Content-Type": "application/json-patch+json"}
    answer = await person.patch(ME, content=b'{"bio": "patched"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert answer.headers["accept-patch"] == "application/json, application/merge-patch+json"


REFUSED_PATCHES: list[tuple[dict[str, Any], str, str]] = [
    ({"display_name": ""}, "#/display_name", "too_short"),
    ({"display_name": "   "}, "#/display_name", "blank_text"),
    ({"display_name": "a\u202eb"}, "#/display_name", "control_character"),
    ({"display_name": "x" * 101}, "#/display_name", "too_long"),
    ({"display_name": 5}, "#/display_name", "wrong_type"),
    ({"bio": "x" * 2001}, "#/bio", "too_long"),
    ({"avatar_url": "javascript:alert(1)"}, "#/avatar_url", "invalid_url"),
    ({"avatar_url": "ftp://example.com/a"}, "#/avatar_url", "invalid_url"),
    ({"avatar_url": "example.com"}, "#/avatar_url", "invalid_url"),
    ({"avatar_url": "https://exa\nmple.com/a"}, "#/avatar_url", "invalid_url"),
    ({"locale": None}, "#/locale", "wrong_type"),
    ({"locale": "en_US"}, "#/locale", "invalid_locale"),
    ({"locale": "english"}, "#/locale", "invalid_locale"),
    ({"timezone": None}, "#/timezone", "wrong_type"),
    ({"timezone": "Mars/Olympus"}, "#/timezone", "invalid_timezone"),
    ({"timezone": "../../etc/passwd"}, "#/timezone", "invalid_timezone"),
    ({"timezone": "localtime"}, "#/timezone", "invalid_timezone"),
    ({"email": "new@example.com"}, "#/email", "unknown_field"),
    ({"id": str(uuid4())}, "#/id", "unknown_field"),
    ({"version": 7}, "#/version", "unknown_field"),
]


async def test_patch_refuses(person: Person, connection: Connection) -> None:
    row = "SELECT u::text FROM users.users u"
    before = await connection.fetchval(row)
    for patch, pointer, code in REFUSED_PATCHES:
        answer = await person.patch(ME, json=patch)
        assert problem_of(answer, 422, "validation_failed") == {pointer: code}, patch
    assert await connection.fetchval(row) == before


async def test_if_match_decides(person: Person) -> None:
    tag = (await person.get(ME)).headers["etag"]
    answer = await person.patch(ME, json={"bio": "first"}, headers={"If-Match": tag})
    assert answer.status_code == 200
    stale = await person.patch(ME, json={"bio": "second"}, headers={"If-Match": tag})
    assert problem_of(stale, 412, "precondition_failed") == {}
    assert (await person.get(ME)).json()["bio"] == "first"
    both = f"{tag}, {answer.headers['etag']}"
    assert (await person.patch(ME, json={"bio": "third"}, headers={"If-Match": both})).status_code == 200
    assert (await person.patch(ME, json={"bio": "fourth"}, headers={"If-Match": "*"})).status_code == 200


async def test_if_match_with_another_tag_changes_nothing(person: Person) -> None:
    other = uuid4().hex
    for tag in (
        '"x"',
        "x",
        "",
        f'W/"{person.id.hex}-1"',
        f'"{person.id.hex}-99999999999999999999"',
        f'"{other}-1"',
    ):
        answer = await person.patch(ME, json={"bio": "changed"}, headers={"If-Match": tag})
        problem_of(answer, 412, "precondition_failed")
    assert (await person.get(ME)).json()["bio"] is None


async def test_of_racing_patches_with_one_tag_one_wins(person: Person) -> None:
    tag = (await person.get(ME)).headers["etag"]
    answers = await asyncio.gather(
        *(person.patch(ME, json={"bio": str(i)}, headers={"If-Match": tag}) for i in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    (winner,) = (answer for answer in answers if answer.status_code == 200)
    me = await person.get(ME)
    assert (me.json(), me.headers["etag"]) == (winner.json(), f'"{person.id.hex}-2"')


async def test_racing_patches_of_different_fields_all_count(person: Person) -> None:
    patches = [{"bio": "b"}, {"display_name": "d"}, {"locale": "fr"}, {"timezone": "Asia/Tokyo"}]
    await asyncio.gather(*(person.patch(ME, json=patch) for patch in patches))
    me = await person.get(ME)
    assert {key: me.json()[key] for patch in patches for key in patch} == {
        key: value for patch in patches for key, value in patch.items()
    }
    assert me.headers["etag"] == f'"{person.id.hex}-5"'


async def test_others_see_only_the_public_part(make_person: MakePerson, budget: Budget) -> None:
    ada, eve = await make_person(display_name="Ada"), await make_person()
    await ada.patch(ME, json={"bio": "Countess", "avatar_url": "https://example.com/ada"})
    with budget(1):
        answer = await eve.get(f"/v1/users/{ada.id}")
    me = (await ada.get(ME)).json()
    assert body_of(answer, PublicUserResponse) == {
        "id": str(ada.id),
        "display_name": "Ada",
        "bio": "Countess",
        "avatar_url": "https://example.com/ada",
        "created_at": me["created_at"],
    }


async def test_there_is_no_such_user(person: Person) -> None:
    problem_of(await person.get(f"/v1/users/{new_id()}"), 404, "user_not_found")
    refused = problem_of(await person.get("/v1/users/not-an-id"), 422, "validation_failed")
    assert refused == {"path:user_id": "invalid_uuid"}


async def test_who_is_deleted_is_not_there(person: Person, connection: Connection) -> None:
    await connection.execute("UPDATE users.users SET deleted_at = now()")
    preferences = f"{ME}/preferences"
    for answer in (
        await person.get(ME),
        await person.patch(ME, json={"bio": "x"}),
        await person.get(f"/v1/users/{person.id}"),
        await person.get(preferences),
        await person.put(preferences, json={}),
        await person.patch(preferences, json={"theme": "dark"}),
        await person.patch(preferences, json={"extra": {"a": 1}}),
    ):
        problem_of(answer, 404, "user_not_found")
    lookup = await person.post(LOOKUP, json={"ids": [str(person.id)]})
    assert body_of(lookup, LookupResponse) == {"items": [], "missing": [str(person.id)]}


async def test_lookup_of_a_hundred_is_one_statement(person: Person, connection: Connection, budget: Budget) -> None:
    ids = [new_id() for _ in range(100)]
    await connection.executemany(
        "INSERT INTO users.users (id, email, display_name, locale, timezone) VALUES ($1, $2, $3, 'en', 'UTC')",
        [(user_id, f"{user_id}@example.com", f"name {user_id}") for user_id in ids[:60]],
    )
    asked = [str(user_id) for user_id in reversed(ids)]
    with budget(1):
        answer = await person.post(LOOKUP, json={"ids": asked})
    body = body_of(answer, LookupResponse)
    assert [item["id"] for item in body["items"]] == asked[40:]
    assert [item["display_name"] for item in body["items"]] == [f"name {user_id}" for user_id in asked[40:]]
    assert body["missing"] == asked[:40]


async def test_lookup_names_each_once(person: Person) -> None:
    other = str(new_id())
    answer = await person.post(LOOKUP, json={"ids": [other, str(person.id), other, str(person.id)]})
    body = body_of(answer, LookupResponse)
    assert ([item["id"] for item in body["items"]], body["missing"]) == ([str(person.id)], [other])


REFUSED_LOOKUPS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"ids": []}, {"#/ids": "too_short"}),
    ({"ids": [str(uuid4()) for _ in range(101)]}, {"#/ids": "too_long"}),
    ({"ids": ["x"]}, {"#/ids/0": "invalid_uuid"}),
    ({"ids": [5]}, {"#/ids/0": "wrong_type"}),
    ({"ids": "x"}, {"#/ids": "wrong_type"}),
    ({}, {"#/ids": "missing"}),
    ({"ids": [str(uuid4())], "more": 1}, {"#/more": "unknown_field"}),
]


async def test_lookup_refuses(person: Person) -> None:
    for body, refused in REFUSED_LOOKUPS:
        answer = await person.post(LOOKUP, json=body)
        assert problem_of(answer, 422, "validation_failed") == refused, body


ROUTES = [
    ("GET", ME),
    ("PATCH", ME),
    ("GET", f"{ME}/preferences"),
    ("PUT", f"{ME}/preferences"),
    ("PATCH", f"{ME}/preferences"),
    ("GET", f"{ME}/events"),
    ("GET", f"{ME}/events/summary"),
    ("GET", "/v1/users/01990000-0000-7000-8000-000000000001"),
    ("POST", LOOKUP),
    ("POST", "/v1/events"),
]


async def test_nobody_gets_in_without_logging_in(client: httpx.AsyncClient) -> None:
    for method, path in ROUTES:
        answer = await client.request(method, path)
        problem_of(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
