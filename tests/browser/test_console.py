"""The console in a browser: stories of people and administrators, accessibility, and the pictures of the docs."""

import asyncio
import json
import os
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.browser.chromium import Tab, chromium
from tests.fixtures.application import ROOT, LiveServer, LiveWorker
from tests.fixtures.people import Person, make_admin, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, scaled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(scaled(180))]
ADMIN, PASSWORD = "admin@example.com", "correct horse battery staple"
PAGES = {
    "overview": "/console",
    "jobs": "/console/jobs",
    "invoices": "/console/invoices",
    "webhooks": "/console/webhooks",
    "profile": "/console/profile",
    "security": "/console/security",
    "api-keys": "/console/api-keys",
    "installation": "/console/admin",
    "queues": "/console/admin/queues",
    "deliveries": "/console/admin/deliveries",
    "security-log": "/console/admin/security-events",
    "all-jobs": "/console/admin/jobs",
    "people": "/console/admin/people",
}
# Where it is asked for, the pictures of the docs are made anew.
PICTURES = os.environ.get("CONSOLE_PICTURES")


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    async with chromium() as tab:
        yield tab


@pytest.fixture
async def url(live_server: LiveServer) -> str:
    # The origin of a page is the address that is really open.
    return await live_server(APP_PUBLIC_URL="")


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=scaled(20)) as client:
        yield client


@pytest.fixture
async def admin(client: httpx.AsyncClient, connection: Connection) -> Person:
    return await make_admin(await register(client, email=ADMIN, display_name="Ada Admin"), connection)


async def log_in(tab: Tab, url: str, email: str) -> None:
    """As a person does it, by the form."""
    await tab.open(f"{url}/console")
    await tab.type_into('input[name="email"]', email)
    await tab.type_into('input[name="password"]', PASSWORD)
    await tab.press("button.main")
    await tab.wait_for_text("h1", "Welcome")
    await is_loaded(tab)
    # A dialog would wait for a hand.
    await tab.evaluate("window.confirm = () => true")


async def is_loaded(tab: Tab) -> None:
    """After a change of pages that the page itself began."""

    async def is_complete() -> bool:
        return bool(await tab.evaluate("document.readyState") == "complete")

    await eventually(is_complete, within=20)


async def test_an_administrator_pauses_a_queue(tab: Tab, url: str, admin: Person) -> None:
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/admin/queues")
    await tab.evaluate("window.confirm = () => true")
    await tab.press('[data-action="POST /v1/admin/queues/bulk/pause"]')
    # The page shows it without being loaded anew.
    await tab.wait_for_text("table", "paused")
    queues = (await admin.get("/v1/admin/queues")).json()["items"]
    assert [queue["queue"] for queue in queues if queue["paused"]] == ["bulk"]
    await tab.press('[data-action="POST /v1/admin/queues/bulk/resume"]')

    async def is_resumed() -> bool:
        return "paused" not in await tab.text_of("table")

    await eventually(is_resumed, within=20)
    assert tab.problems == []
    assert tab.hosts == {urlsplit(url).netloc}


async def test_a_banned_person_sees_their_session_end(
    tab: Tab, url: str, client: httpx.AsyncClient, admin: Person
) -> None:
    person = await register(client, email="person@example.com")
    await log_in(tab, url, person.email)
    assert (await admin.post(f"/v1/admin/users/{person.id}/ban")).status_code == 204
    # The open page asks for its own content, and is led to the log-in.
    await tab.wait_for_text("button.main", "Log in")
    await is_loaded(tab)
    await tab.type_into('input[name="email"]', person.email)
    await tab.type_into('input[name="password"]', PASSWORD)
    await tab.press("button.main")
    await tab.wait_for_text(".fault", "banned")
    assert [problem for problem in tab.problems if "403" not in problem] == []


async def test_what_happens_elsewhere_appears(tab: Tab, url: str, admin: Person, live_worker: LiveWorker) -> None:
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/jobs")
    await tab.wait_for_text(".none", "No such jobs")
    await live_worker()
    answer = await admin.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    assert answer.status_code == 202
    await tab.wait_for_text("table", "succeeded")
    await tab.press(f'a[href="/console/jobs/{answer.json()["id"]}"]')
    await tab.wait_for_text("h1", "export.events")
    assert await tab.evaluate("document.querySelectorAll('a[download]').length") == 1
    assert tab.problems == []


async def test_a_key_is_made_and_deleted_by_keyboard(tab: Tab, url: str, admin: Person) -> None:
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/api-keys")
    await tab.evaluate("window.confirm = () => true")
    await tab.type_into('input[name="name"]', "robot")
    for key in ("Tab", " ", "Enter"):
        await press_key(tab, key)
    await tab.wait_for_text("#notice", "ak_")
    (secret,) = re.findall(r"ak_\S+", await tab.text_of("#notice"))
    used = await admin.client.get("/v1/users/me", headers={"Authorization": f"Bearer {secret}"})
    assert used.status_code == 200
    await tab.wait_for_text("table", "robot")
    await tab.evaluate("document.querySelector('button.danger').focus()")
    await press_key(tab, "Enter")
    await tab.wait_for_text(".none", "No API keys yet")
    assert (await admin.client.get("/v1/users/me", headers={"Authorization": f"Bearer {secret}"})).status_code == 401
    assert tab.problems == []


async def test_all_failed_jobs_that_match_are_retried(
    tab: Tab, url: str, admin: Person, connection: Connection, live_worker: LiveWorker
) -> None:
    for _ in range(10):
        await admin.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    await connection.execute(
        "UPDATE jobs.jobs SET state = 3, attempt = 5, finished_at = now() WHERE kind = 'export.events'"
    )
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/admin/jobs?state=failed&kind=export.events")
    await tab.evaluate("window.confirm = (text) => { window.asked = text; return false }")
    await tab.press('[data-bulk*="retry"]')

    async def is_asked() -> bool:
        return bool(await tab.evaluate("Boolean(window.asked)"))

    await eventually(is_asked, within=20)
    # It is said how many before anything happens.
    assert await tab.evaluate("window.asked") == "Retry all that match: 10 jobs?"
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 3") == 10
    await live_worker()
    await tab.evaluate("window.confirm = () => true")
    await tab.press('[data-bulk*="retry"]')
    await tab.wait_for_text("h1", "succeeded")

    async def have_succeeded() -> bool:
        sql = "SELECT count(*) FROM jobs.jobs WHERE state = 2 AND kind = 'export.events'"
        return bool(await connection.fetchval(sql) == 10)

    await eventually(have_succeeded, within=60)
    assert tab.problems == []


async def test_a_passkey_is_added_and_logs_in(tab: Tab, url: str, admin: Person) -> None:
    # A passkey belongs to a name; an address has none.
    url = url.replace("127.0.0.1", "localhost")
    await tab.call("WebAuthn.enable")
    authenticator = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
    options = {**authenticator, "isUserVerified": True, "automaticPresenceSimulation": True}
    await tab.call("WebAuthn.addVirtualAuthenticator", options=options)
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/security")
    await tab.press("#add-passkey")
    await tab.wait_for_text("#notice", "The passkey is added.")
    await tab.press('[data-action="POST /v1/auth/logout"]')
    await tab.wait_for_text("button.main", "Log in")
    await is_loaded(tab)
    await tab.press("#use-passkey")
    await tab.wait_for_text("h1", "Welcome")
    assert tab.problems == []


async def test_a_new_password_keeps_its_maker_logged_in(tab: Tab, url: str, admin: Person) -> None:
    await log_in(tab, url, ADMIN)
    await tab.open(f"{url}/console/security")
    await tab.type_into('input[name="current_password"]', PASSWORD)
    await tab.type_into('input[name="new_password"]', "another long pass phrase")
    await tab.evaluate("document.querySelector('form[data-action$=\"password/change\"]').requestSubmit()")
    await tab.wait_for_text("#notice", "Your password is changed")
    await tab.open(f"{url}/console")
    await tab.wait_for_text("h1", "Welcome")
    assert await tab.evaluate("fetch('/v1/auth/sessions').then((r) => r.json()).then((r) => r.items.length)") == 1
    assert tab.problems == []


async def press_key(tab: Tab, key: str) -> None:
    text = {"Enter": "\r", " ": " "}.get(key)
    codes = {"Enter": 13, " ": 32, "Tab": 9}
    down: dict[str, object] = {"key": key, "windowsVirtualKeyCode": codes[key]}
    await tab.call("Input.dispatchKeyEvent", type="keyDown", **down, **({"text": text} if text else {}))
    await tab.call("Input.dispatchKeyEvent", type="keyUp", **down)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_page_is_for_everybody(
    tab: Tab, url: str, client: httpx.AsyncClient, admin: Person, connection: Connection, theme: str
) -> None:
    """Axe finds nothing serious, and nothing is wider than a small phone or lost on a wide screen."""
    await fill(admin, connection)
    await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    axe = (ROOT / "tests" / "browser" / "axe.min.js").read_text(encoding="utf-8")
    await tab.open(f"{url}/console/login")
    pages = dict(PAGES)
    found = {"login": await serious_findings(tab, axe)}
    await log_in(tab, url, ADMIN)
    job = (await admin.get("/v1/jobs")).json()["items"][0]["id"]
    pages |= {
        "job": f"/console/jobs/{job}",
        "any-job": f"/console/admin/jobs/{job}",
        "person": f"/console/admin/people/{admin.id}",
    }
    for name, path in pages.items():
        for width in (360, 1280, 2560):
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
            )
            await tab.open(url + path)
            assert await tab.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            if width == 1280:
                found[name] = await serious_findings(tab, axe)
                if PICTURES and theme == "light":
                    await take_picture(tab, Path(PICTURES) / f"{name}.png")
    assert {name: findings for name, findings in found.items() if findings} == {}
    assert tab.problems == []


async def fill(admin: Person, connection: Connection) -> None:
    """Something to see on every page."""
    kinds = ("page.view", "cart.add", "order.paid")
    moments = [f"now() - interval '{hours} hours'" for hours in range(1, 600, 5)]
    times = [row[0] for row in await connection.fetch(f"SELECT unnest(ARRAY[{','.join(moments)}])")]
    events = [
        {"kind": kinds[number % 3], "occurred_at": moment.isoformat(), "properties": {"number": number}}
        for number, moment in enumerate(times)
    ]
    assert (await admin.post("/v1/events", json={"events": events})).status_code == 201
    for kind in ("export.events", "report.activity"):
        args = {"format": "csv"} if kind == "export.events" else {}
        await admin.post("/v1/jobs", json={"kind": kind, "args": args})
    await connection.execute(
        "UPDATE jobs.jobs SET state = 3, attempt = 5, finished_at = now(), started_at = now(),"
        """ error = '{"code": "internal_error", "message": "The handler failed."}' WHERE kind = 'report.activity'"""
    )
    await admin.post("/v1/auth/api-keys", json={"name": "reports", "scopes": ["jobs:read", "events:read"]})


async def serious_findings(tab: Tab, axe: str) -> list[str]:
    await tab.evaluate(axe)
    found = await tab.evaluate("axe.run().then((result) => JSON.stringify(result.violations))")
    return [
        f"{item['id']}: {[node['html'] for node in item['nodes']]}"
        for item in json.loads(found)
        if item["impact"] in {"serious", "critical"}
    ]


async def take_picture(tab: Tab, file: Path) -> None:
    picture = await tab.call("Page.captureScreenshot", format="png")
    await asyncio.to_thread(file.write_bytes, b64decode(picture["data"]))
