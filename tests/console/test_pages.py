"""The console's pages: who sees what, that they show text as text, and what they cost."""

import asyncio
import gzip
import json
import re
from collections.abc import Iterable
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser

import httpx
import pytest
from prometheus_client import REGISTRY

from app.console.pages import PAGES
from app.console.rendering import render
from app.console.router import STATIC_FILES
from app.jobs.records import State
from tests.fixtures.application import ROOT, Budget
from tests.fixtures.people import MakePerson, Person, log_in, make_admin
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

OWN = [page.path for page in PAGES if "{" not in page.path and not page.is_for_admins]
LABELLED = {page.path for page in PAGES if page.label is not None}
ADMINS = [page.path for page in PAGES if "{" not in page.path and page.is_for_admins]
TEMPLATES = STATIC_FILES.parent / "templates"
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>"
UNKNOWN = "0198f000-0000-7000-8000-000000000000"
LARGEST = 150_000


class Tags(HTMLParser):
    """What a page would load and run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith(("on", "hx-on")) or name == "style"]
        self.sources += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


@pytest.fixture
async def admin(make_person: MakePerson, connection: Connection) -> Person:
    return await make_admin(await make_person(email="admin@example.com"), connection)


async def test_a_stranger_is_sent_to_the_log_in(client: httpx.AsyncClient) -> None:
    for path in (*OWN, *ADMINS, f"/console/jobs/{UNKNOWN}", f"/console/admin/people/{UNKNOWN}"):
        answer = await client.get(path, params={"state": "failed"})
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/console/login?next={path.replace('/', '%2F')}%3Fstate%3Dfailed"
        assert answer.content == b""


async def test_a_page_whose_session_has_ended_leads_to_the_log_in(person: Person) -> None:
    await person.post("/v1/auth/logout")
    answer = await person.get("/console", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/console/login?next=%2Fconsole")


async def test_everybody_sees_what_is_theirs(person: Person) -> None:
    for path in OWN:
        answer = await person.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert re.findall(r'href="(/console[^"]*)" aria-current="page"', answer.text) == (
            [path] if path in LABELLED else []
        )
        # They are told of no page that they may not see.
        assert "/console/admin" not in answer.text


async def test_pages_of_the_installation_are_for_administrators(person: Person) -> None:
    for path in (*ADMINS, f"/console/admin/jobs/{UNKNOWN}", f"/console/admin/people/{UNKNOWN}"):
        answer = await person.get(path)
        assert answer.status_code == 403
        assert "This page is for administrators." in answer.text


async def test_administrators_see_every_page(admin: Person) -> None:
    assert {path: (await admin.get(path)).status_code for path in (*OWN, *ADMINS)} == dict.fromkeys(
        (*OWN, *ADMINS), 200
    )


async def test_a_missing_job_is_said_in_a_page(person: Person, admin: Person) -> None:
    for caller, path in (
        (person, "/console/jobs/"),
        (admin, "/console/admin/jobs/"),
        (admin, "/console/admin/people/"),
    ):
        answer = await caller.get(f"{path}{UNKNOWN}")
        assert (answer.status_code, "<h1>Not Found</h1>" in answer.text) == (404, True)


async def test_a_job_is_shown_in_each_state(admin: Person, connection: Connection) -> None:
    job = (await admin.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()["id"]
    for state in State:
        await connection.execute(
            "UPDATE jobs.jobs SET state = $2::smallint, attempt = 1, started_at = created_at,"
            " run_token = CASE WHEN $2::smallint = 1 THEN gen_random_uuid() END,"
            " finished_at = CASE WHEN $2::smallint > 1 THEN created_at END, worker_id = 'host:1',"
            ' progress = \'{"done": 1, "total": 4, "message": null}\','
            ' error = CASE WHEN $2::smallint = 3 THEN \'{"code": "oh", "message": "<b>no</b>"}\'::jsonb END'
            " WHERE id = $1",
            job,
            state,
        )
        for path in ("/console/jobs", "/console/admin/jobs"):
            text = (await admin.get(f"{path}/{job}")).text
            ends = "Retry" if state in {State.FAILED, State.CANCELLED} else "Cancel"
            wanted = [] if state == State.SUCCEEDED else [ends]
            assert re.findall(r">(Retry|Cancel)</button>", text) == wanted, (state, path)
            assert ("&lt;b&gt;no&lt;/b&gt;" in text) == (state == State.FAILED)
            assert '<progress value="1" max="4">' in text
        for path in ("/console", "/console/jobs", "/console/admin/jobs", f"/console/admin/people/{admin.id}"):
            assert (
                f'href="/console/{"jobs" if path in {"/console", "/console/jobs"} else "admin/jobs"}/{job}"'
                in (await admin.get(path)).text
            )


async def test_a_filter_that_the_api_refuses_is_said_in_a_page(person: Person) -> None:
    answer = await person.get("/console/jobs", params={"state": "lost"})
    assert (answer.status_code, "<h1>Unprocessable" in answer.text) == (422, True)


async def test_text_of_people_stays_text(client: httpx.AsyncClient, make_person: MakePerson, admin: Person) -> None:
    client.headers["User-Agent"] = ATTACK
    person = await make_person(display_name=ATTACK)
    event = {"kind": "page.view", "properties": {"title": ATTACK}}
    assert (await person.post("/v1/events", json={"events": [event]})).status_code == 201
    made = await person.post("/v1/auth/api-keys", json={"name": ATTACK, "scopes": ["jobs:read"]})
    assert made.status_code == 201
    banned = await admin.post(f"/v1/admin/users/{person.id}/ban", json={"reason": ATTACK})
    assert banned.status_code == 204
    person_page = await admin.get(f"/console/admin/people/{person.id}")
    await admin.post(f"/v1/admin/users/{person.id}/unban")
    person = await log_in(person)
    pages = [person_page, *[await person.get(path) for path in ("/console", "/console/security", "/console/api-keys")]]
    for answer in pages:
        assert answer.status_code == 200
        tags = Tags(answer.text)
        assert (tags.handlers, tags.names.count("script"), set(tags.sources) - KNOWN_SOURCES) == ([], 3, set())
        assert "&lt;script&gt;alert(1)" in answer.text or "\\u003cscript\\u003ealert(1)" in answer.text


KNOWN_SOURCES = {
    f"/console/static/{name}"
    for name in ("icon.svg", "console.css", "console.js", "htmx.min.js", "uplot.min.js", "uplot.min.css")
}


async def test_what_an_address_says_stays_text(admin: Person, person: Person) -> None:
    await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    attack = "\" autofocus onfocus=\"alert(1)' onclick='alert(2)"
    for path, given in {
        "/console/admin/jobs": {"state": "queued", "since": "2000-01-01T00:00:00Z", "extra": attack},
        "/console/admin/people": {"q": attack},
        "/console/admin/security-events": {"type": attack},
        "/console/login": {"next": f"/console/{attack}"},
    }.items():
        text = (await admin.get(path, params=given)).text
        assert Tags(text).handlers == []
    text = (await admin.get("/console/admin/jobs", params={"state": "queued", "error": "x' onclick='alert(1)"})).text
    assert Tags(text).handlers == []
    text = (await admin.get("/console/admin/jobs", params={"state": "queued"})).text
    bulk = [json.loads(unescape(value)) for value in re.findall(r"data-bulk='([^']*)'", text)]
    assert bulk == [{"action": action, "filter": {"state": "queued"}} for action in ("retry", "cancel", "delete")]


def test_json_stands_in_single_quotes() -> None:
    """It keeps double quotes as they are, so that a value could end an attribute in those."""
    for template in TEMPLATES.glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert text.count("| tojson }}") == len(re.findall(r"='[^'\n]*\| tojson }}'|>{{[^}]*\| tojson }}<", text)), (
            template
        )


async def test_nothing_runs_but_files_of_our_own(person: Person) -> None:
    policy = (await person.get("/console")).headers["content-security-policy"]
    assert policy == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )


async def test_a_page_is_brought_up_to_date_without_its_frame(person: Person) -> None:
    answer = await person.get("/console", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["vary"]) == (200, "HX-Request")
    assert answer.text.lstrip().startswith("<h1>Welcome, ")
    assert "<nav" not in answer.text


async def test_a_log_in_leads_to_a_page_of_ours(client: httpx.AsyncClient) -> None:
    for wanted, led_to in {
        "/console/jobs?state=failed": "/console/jobs?state=failed",
        "https://example.org/console": "/console",
        "//example.org/console/": "/console",
        "/console/\\\\example.org": "/console",
        "/consoles": "/console",
        "javascript:alert(1)": "/console",
    }.items():
        text = (await client.get("/console/login", params={"next": wanted})).text
        assert set(re.findall(r'data-then="([^"]*)"', text)) == {led_to}


@pytest.mark.settings(APP_LIMITS_CALLER="300", APP_LIMITS_WINDOW="3600")
async def test_the_overview_is_there_without_its_curve(person: Person) -> None:
    """To count events costs more the more there are, and is asked for once, not with each look at the page."""
    assert (await person.get("/console")).status_code == 200
    text = (await person.get("/console/activity", headers={"HX-Request": "true"})).text
    assert "No events yet." in text
    event = {"kind": "page.view", "properties": {}}
    assert (await person.post("/v1/events", json={"events": [event]})).status_code == 201
    assert '<div class="chart"' in (await person.get("/console/activity")).text


async def test_money_is_written_in_the_digits_of_its_currency() -> None:
    context = {"items": [dict(INVOICE, currency=currency) for currency in ("JPY", "EUR", "KWD")]}
    text = await render("invoices.html", {**context, "next_cursor": None, "query": {}}, is_fragment=True)
    assert re.findall(r"[\d,.]+ (?:JPY|EUR|KWD)", text) == ["123,456 JPY", "1,234.56 EUR", "123.456 KWD"]


INVOICE = {
    "id": UNKNOWN,
    "number": "1",
    "customer": {"name": "Ann"},
    "total_minor": 123_456,
    "status": "issued",
    "created_at": "2026-11-30T12:00:00Z",
}


async def test_the_security_log_tells_whose_and_by_whom(admin: Person, person: Person) -> None:
    assert (await admin.post(f"/v1/admin/users/{person.id}/ban")).status_code == 204
    text = (await admin.get("/console/admin/security-events", params={"user_id": str(person.id)})).text
    assert f'href="/console/admin/people/{person.id}"' in text
    assert f'href="/console/admin/people/{admin.id}"' in text


async def test_a_page_costs_what_its_routes_cost(person: Person, budget: Budget) -> None:
    for path, statements in {"/console/jobs": 1, "/console/security": 4, "/console/webhooks": 2}.items():
        with budget(statements):
            assert (await person.get(path)).status_code == 200


def test_scripts_of_others_are_the_locked_ones() -> None:
    lock = json.loads((ROOT / "scripts" / "vendored.json").read_text(encoding="utf-8"))
    found = {item["file"]: sha256((ROOT / item["file"]).read_bytes()).hexdigest() for item in lock}
    assert found == {item["file"]: item["sha256"] for item in lock}


def test_all_that_is_loaded_is_small() -> None:
    assert sum(len(gzip.compress(file.read_bytes())) for file in STATIC_FILES.iterdir()) < LARGEST


async def test_the_requests_that_a_page_makes_are_no_requests_of_their_own(person: Person) -> None:
    routes = ("/console/security", "/v1/auth/sessions", "/v1/auth/mfa", "/v1/auth/security-events")
    before = await asyncio.to_thread(_counted, routes)
    await person.get("/console/security")

    async def is_counted() -> bool:
        return (await asyncio.to_thread(_counted, routes))[0] > before[0]

    await eventually(is_counted)
    after = await asyncio.to_thread(_counted, routes)
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 0, 0, 0]


def _counted(routes: Iterable[str]) -> list[float]:
    """Looks through all series, of which a long run has many: too much for a step of the loop."""
    name = "onehop_http_server_request_duration_seconds_count"
    labels = {"http_request_method": "GET", "http_response_status_code": "200"}
    return [REGISTRY.get_sample_value(name, {**labels, "http_route": route}) or 0.0 for route in routes]


@pytest.mark.settings(APP_LIMITS_CALLER="10", APP_LIMITS_WINDOW="3600")
async def test_but_they_are_paid_for(person: Person) -> None:
    """One unit for the page and one for each of its four requests, so that ten units are used up by the second page."""
    answers = [await person.get("/console/security") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
