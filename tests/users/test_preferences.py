"""Get your preferences."""

import asyncio
from typing import Any

import pytest

from app.users.schemas import PreferencesResponse
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection

PREFERENCES = "/v1/users/me/preferences"
DEFAULTS = {
    "theme": "system",
    "language": "en",
    "email_notifications": True,
    "weekly_report": False,
    "extra": {},
}


async def test_everybody_begins_with_the_defaults(make_person: MakePerson, budget: Budget) -> None:
    person = await make_person(locale="de-AT")
    with budget(1):
        answer = await person.get(PREFERENCES)
    assert body_of(answer, PreferencesResponse) == DEFAULTS | {"language": "de-AT"}
    with budget(0):
        assert (await person.get(PREFERENCES)).content == answer.content
    tag = answer.headers["etag"]
    assert (await person.get(PREFERENCES, headers={"If-None-Match": tag})).status_code == 304


async def test_put_replaces_everything(person: Person, budget: Budget) -> None:
    wanted = {
        "theme": "dark",
        "language": "fr",
        "email_notifications": False,
        "weekly_report": True,
        "extra": {"a": [1, 2.5, None, {"ü": "✓"}]},
    }
    with budget(1):
        answer = await person.put(PREFERENCES, json=wanted)
    assert body_of(answer, PreferencesResponse) == wanted
    assert (await person.get(PREFERENCES)).json() == wanted
    assert (await person.put(PREFERENCES, json={"theme": "light"})).json() == DEFAULTS | {"theme": "light"}


async def test_patch_changes_what_it_names(person: Person, budget: Budget) -> None:
    with budget(1):
        answer = await person.patch(PREFERENCES, json={"theme": "dark", "weekly_report": True})
    expected = DEFAULTS | {"theme": "dark", "weekly_report": True}
    assert body_of(answer, PreferencesResponse) == expected
    assert (await person.patch(PREFERENCES, json={"weekly_report": False})).json() == expected | {
        "weekly_report": False
    }


async def test_extra_is_merged(person: Person, budget: Budget) -> None:
    await person.patch(PREFERENCES, json={"extra": {"a": {"b": 1, "c": [1]}, "d": "x"}})
    with budget(4):
        answer = await person.patch(PREFERENCES, json={"theme": "dark", "extra": {"a": {"b": None, "e": 2}}})
    expected = DEFAULTS | {"theme": "dark", "extra": {"a": {"c": [1], "e": 2}, "d": "x"}}
    assert body_of(answer, PreferencesResponse) == expected
    assert (await person.get(PREFERENCES)).json() == expected


async def test_racing_merges_of_extra_all_count(person: Person) -> None:
    answers = await asyncio.gather(*(person.patch(PREFERENCES, json={"extra": {f"key{i}": i}}) for i in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    answer = await person.get(PREFERENCES)
    assert answer.json()["extra"] == {f"key{i}": i for i in range(8)}
    assert answer.headers["etag"] == f'"{person.id.hex}-9"'


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("body", [{"theme": "light"}, {"extra": {"x": 1}}])
async def test_if_match_decides(person: Person, method: str, body: dict[str, object]) -> None:
    tag = (await person.get(PREFERENCES)).headers["etag"]
    answer = await person.request(method, PREFERENCES, json=body, headers={"If-Match": tag})
    assert answer.status_code == 200
    stale = await person.request(method, PREFERENCES, json={"theme": "dark"}, headers={"If-Match": tag})
    problem_of(stale, 412, "precondition_failed")
    stale = await person.request(method, PREFERENCES, json={"extra": {"y": 1}}, headers={"If-Match": tag})
    problem_of(stale, 412, "precondition_failed")
    assert (await person.get(PREFERENCES)).json() == answer.json()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"theme": "blue"}, "#/theme", "invalid_choice"),
    ({"theme": None}, "#/theme", "invalid_choice"),
    ({"language": "xx_YY"}, "#/language", "invalid_locale"),
    ({"email_notifications": "yes"}, "#/email_notifications", "wrong_type"),
    ({"email_notifications": 1}, "#/email_notifications", "wrong_type"),
    ({"weekly_report": None}, "#/weekly_report", "wrong_type"),
    ({"extra": None}, "#/extra", "wrong_type"),
    ({"extra": [1]}, "#/extra", "wrong_type"),
    ({"extra": {"a": "x" * 16_384}}, "#/extra", "too_large"),
    ({"extra": {"a": 2**64}}, "#/extra", "number_too_large"),
    ({"colour": "red"}, "#/colour", "unknown_field"),
]


async def test_refuses(person: Person, connection: Connection) -> None:
    row = "SELECT p::text FROM users.preferences p"
    before = await connection.fetchval(row)
    for body, pointer, code in REFUSED:
        for method in ("PUT", "PATCH"):
            answer = await person.request(method, PREFERENCES, json=body)
            assert problem_of(answer, 422, "validation_failed") == {pointer: code}, (method, body)
    assert await connection.fetchval(row) == before


async def test_extra_may_have_16_kib_and_no_more(person: Person) -> None:
    largest = {"a": "x" * (16 * 1024 - len('{"a":""}'))}
    assert (await person.put(PREFERENCES, json={"extra": largest})).status_code == 200
    # What counts is the whole after the merge.
    answer = await person.patch(PREFERENCES, json={"extra": {"b": 1}})
    assert problem_of(answer, 422, "validation_failed") == {"#/extra": "too_large"}
    assert (await person.get(PREFERENCES)).json()["extra"] == largest


async def test_extra_may_have_32_levels_and_no_more(person: Person) -> None:
    deepest: dict[str, object] = {}
    for _ in range(31):
        deepest = {"a": deepest}
    assert (await person.patch(PREFERENCES, json={"extra": deepest})).json()["extra"] == deepest
    for method in ("PUT", "PATCH"):
        answer = await person.request(method, PREFERENCES, json={"extra": {"b": deepest}})
        assert problem_of(answer, 422, "validation_failed") == {"#/extra": "too_deep"}
