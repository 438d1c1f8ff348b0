"""A write to a resource with an entity tag is done if the tag that its caller names is the present one, else not at all
(RFC 9110, section 13).
"""

import asyncio
from typing import Any

from fastapi.routing import APIRoute

from app.main import create_app
from app.settings import Settings
from tests.fixtures.answers import problem_of
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import admin, clock, identity, log_in, mailbox, resources, worker

__all__ = ["admin", "clock", "identity", "log_in", "mailbox", "resources", "worker"]

# What `"zz"` and `*` of the two fields forbid, as no present tag is one of these.
REFUSED: list[dict[str, str]] = [
    {"If-Match": '"zz"'},
    {"If-Match": ""},
    {"If-None-Match": "*"},
]


async def tag_of(caller: Person, url: str) -> str:
    answer = await caller.get(url, headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200, answer.text
    return answer.headers["etag"]


async def refused(caller: Person, method: str, url: str, tag: str, body: object = None) -> None:
    """The state that `url` shows, whose tag is `tag`, stays as it is, whatever precondition is not met."""
    before = (await caller.get(url)).json()
    compressed = f'{tag[:-1]}-gzip"'
    unmet: list[dict[str, str] | list[tuple[str, str]]] = [
        *REFUSED,
        {"If-Match": f"W/{tag}"},
        {"If-Match": tag, "If-None-Match": "*"},
        {"If-Match": tag, "If-None-Match": tag},
        *({"If-None-Match": named} for named in (tag, f"W/{tag}", compressed, f'"zz", {tag}')),
        [("If-None-Match", tag), ("If-None-Match", '"zz"')],
        [("If-None-Match", '"zz"'), ("If-None-Match", tag)],
        [("If-None-Match", '"zz"'), ("If-None-Match", "*")],
        [("If-Match", '"zz"'), ("If-Match", "*")],
    ]
    for headers in unmet:
        answer = await caller.request(method, url, json=body, headers=headers)
        problem_of(answer, 412, "precondition_failed")
    assert (await caller.get(url)).json() == before


async def test_an_account_is_closed_in_the_state_that_its_owner_saw(person: Person, connection: Connection) -> None:
    url, body = "/v1/users/me", {"current_password": PASSWORD}
    await refused(person, "DELETE", url, await tag_of(person, url), body)
    outdated = await tag_of(person, url)
    assert (await person.patch(url, json={"bio": "another"})).status_code == 200
    answer = await person.request("DELETE", url, json=body, headers={"If-Match": outdated})
    problem_of(answer, 412, "precondition_failed")
    # The password is asked for first, because a wrong one is no matter of states.
    wrong = await person.request("DELETE", url, json={"current_password": "x"}, headers={"If-Match": '"zz"'})
    problem_of(wrong, 403, "invalid_current_password")
    assert await connection.fetchval("SELECT status FROM identity.accounts WHERE user_id = $1", person.id) == "active"
    jobs = await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'users.purge'")
    assert jobs == 0
    headers = {"If-Match": f'"zz", {await tag_of(person, url)}'}
    assert (await person.request("DELETE", url, json=body, headers=headers)).status_code == 202


async def test_profile_and_preferences_are_changed_in_a_state_that_is_not_excluded(person: Person) -> None:
    for method, url, body in [
        ("PATCH", "/v1/users/me", {"bio": "no"}),
        ("PATCH", "/v1/users/me/preferences", {"theme": "dark"}),
        ("PATCH", "/v1/users/me/preferences", {"extra": {"a": 1}}),
        ("PUT", "/v1/users/me/preferences", {"theme": "light"}),
    ]:
        first = await tag_of(person, url)
        await refused(person, method, url, first, body)
        # Two lines of a list are one list.
        lists = [[("If-None-Match", '"zz"')], [("If-Match", '"zz"'), ("If-Match", first)]]
        assert [(await person.request(method, url, json=body, headers=headers)).status_code for headers in lists] == [
            200,
            412,
        ]
        present = await tag_of(person, url)
        # Neither the state that was excluded nor another one than was named.
        for headers in ([("If-Match", '"zz"'), ("If-Match", present)], {"If-None-Match": first, "If-Match": "*"}):
            assert (await person.request(method, url, json=body, headers=headers)).status_code == 200


async def test_endpoints_are_changed_and_removed_in_the_state_that_was_seen(person: Person) -> None:
    endpoint: dict[str, Any] = {"url": "https://receiver.example.com/hook", "event_types": ["job.failed"]}
    url = (await person.post("/v1/webhooks/endpoints", json=endpoint)).headers["location"]
    first = await tag_of(person, url)
    await refused(person, "PATCH", url, first, {"description": "no"})
    # Excluding a state that it does not have changes nothing.
    assert (await person.patch(url, json={}, headers={"If-None-Match": '"zz"'})).status_code == 200
    await refused(person, "DELETE", url, first)
    changed = await person.patch(url, json={"description": "mine"}, headers={"If-Match": first})
    assert (changed.status_code, changed.headers["etag"]) == (200, await tag_of(person, url))
    for method in ("PATCH", "DELETE"):
        answer = await person.request(method, url, json={"description": "x"}, headers={"If-Match": first})
        problem_of(answer, 412, "precondition_failed")
    missing = url[:-1] + ("0" if url[-1] != "0" else "1")
    problem_of(await person.delete(missing, headers={"If-Match": first}), 404, "endpoint_not_found")
    second = changed.headers["etag"]
    # Of two clients that have seen the same state one comes first.
    texts = [{"description": "one"}, {"description": "two"}]
    answers = await asyncio.gather(*(person.patch(url, json=text, headers={"If-Match": second}) for text in texts))
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    third = next(answer.headers["etag"] for answer in answers if answer.is_success)
    assert (await person.delete(url, headers={"If-Match": third})).status_code == 204


async def test_a_role_is_changed_in_the_state_that_was_seen(admin: Person, person: Person) -> None:
    url = f"/v1/admin/users/{person.id}"
    first = await tag_of(admin, url)
    await refused(admin, "PATCH", url, first, {"role": "admin"})
    changed = await admin.patch(url, json={"role": "admin"}, headers={"If-Match": first})
    assert (changed.status_code, changed.headers["etag"]) == (200, await tag_of(admin, url))
    problem_of(await admin.patch(url, json={"role": "user"}, headers={"If-Match": first}), 412, "precondition_failed")


async def test_what_has_no_state_takes_no_tag(person: Person, connection: Connection) -> None:
    job = (await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})).json()["id"]
    before = await connection.fetch("SELECT id, state, version FROM jobs.jobs ORDER BY id")
    stale = {"If-Match": '"zz"'}
    for method, url, body in [
        ("POST", "/v1/jobs", {"kind": "export.account", "args": {}}),
        ("POST", f"/v1/jobs/{job}/cancel", None),
        ("POST", "/v1/events", {"kind": "a.b"}),
        ("POST", "/v1/auth/logout", None),
    ]:
        answer = await person.request(method, url, json=body, headers=stale)
        problem_of(answer, 412, "precondition_failed")
    for url, posted in [("/v1/jobs", {"kind": "export.account", "args": {}}), ("/v1/auth/api-keys", {"name": "a"})]:
        answer = await person.post(url, json=posted, headers={"If-None-Match": "*"})
        problem_of(answer, 412, "precondition_failed")
    assert await connection.fetch("SELECT id, state, version FROM jobs.jobs ORDER BY id") == before
    assert (await person.get("/v1/users/me/events")).json()["items"] == []
    assert (await person.post("/v1/events", json={"kind": "a.b"}, headers={"If-None-Match": "*"})).status_code == 201
    assert (await person.post(f"/v1/jobs/{job}/cancel", headers={"If-Match": "*"})).status_code == 200


def test_every_write_to_a_resource_with_a_tag_reads_it(settings: Settings) -> None:
    routes = [route for route in create_app(settings).routes if isinstance(route, APIRoute)]
    tagged = {
        route.path for route in routes if "GET" in (route.methods or ()) and not route.path.startswith("/v1/auth/")
    }
    reads = {"$ref": "#/components/parameters/IfMatch"}
    silent = {
        f"{method} {route.path}"
        for route in routes
        for method in (route.methods or set()) & {"PUT", "PATCH", "DELETE"}
        if route.path in tagged and reads not in (route.openapi_extra or {}).get("parameters", ())
    }
    # All sessions of an account end; those that were seen are the more urgent ones.
    assert silent == {"DELETE /v1/admin/users/{user_id}/sessions"}


async def test_a_read_with_an_outdated_tag_is_refused_from_memory_too(person: Person) -> None:
    for path in ("/v1/overview", "/v1/users/me", "/v1/jobs"):
        tag = await tag_of(person, path)
        for named, status in ((tag, 200), ('"zz"', 412), ("*", 200)):
            assert (await person.get(path, headers={"If-Match": named})).status_code == status
