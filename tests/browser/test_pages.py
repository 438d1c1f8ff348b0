"""The pages in a browser: policies that forbid nothing they need, scripts that run, and nothing from elsewhere."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.browser.chromium import Tab, chromium
from tests.fixtures.application import LiveServer, Processes
from tests.fixtures.waiting import eventually, scaled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(scaled(120))]
EMAIL = "person@example.com"
OLD, NEW = "correct horse battery staple", "another long pass phrase"


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    async with chromium() as tab:
        yield tab


async def test_the_front_page_leads_to_the_documentation(tab: Tab, live_server: LiveServer) -> None:
    url = await live_server()
    await tab.open(f"{url}/")
    assert await tab.text_of("h1") == "Onehop"
    # The policy names the style by its hash; a style that is not applied leaves the browser's own width.
    assert await tab.evaluate("getComputedStyle(document.body).maxWidth") == "704px"
    await tab.press('a[href="/docs"]')
    await tab.wait_for_text("h2.title, .info .title", "Onehop")
    assert tab.problems == []
    assert tab.hosts == {urlsplit(url).netloc}


@pytest.mark.parametrize(("path", "shown"), [("/docs", ".opblock"), ("/redoc", "[data-section-id]")])
async def test_the_documentation_shows_every_operation(
    tab: Tab, live_server: LiveServer, path: str, shown: str
) -> None:
    url = await live_server()
    async with httpx.AsyncClient(base_url=url) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    methods = {"get", "put", "post", "patch", "delete", "options", "head"}
    operations = sum(len(methods & item.keys()) for item in paths.values())
    await tab.open(url + path)

    async def all_are_shown() -> bool:
        return bool(await tab.evaluate(f"document.querySelectorAll('{shown}').length") >= operations)

    await eventually(all_are_shown, within=20)
    assert tab.problems == []
    assert tab.hosts == {urlsplit(url).netloc}


async def test_a_forgotten_password_is_set_anew(tab: Tab, live_server: LiveServer, processes: Processes) -> None:
    url = await live_server()
    await processes.start("worker", APP_PUBLIC_URL=url)
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        account = {"email": EMAIL, "password": OLD}
        assert (await client.post("/v1/auth/register", json=account)).status_code == 201

        await tab.open(f"{url}/forgot-password")
        await tab.type_into('input[name="email"]', EMAIL)
        await tab.press("button")
        await tab.wait_for_text("output", "a link is on its way")

        async def link_has_come() -> bool:
            await tab.open(f"{url}/dev/mailbox")
            return "Set a new password" in await tab.text_of("ul")

        await eventually(link_has_come, within=20)
        await tab.evaluate("[...document.links].find((link) => link.text === 'Set a new password').click()")
        await tab.wait_for_text("pre", "/reset-password?token=")
        (link,) = re.findall(r"\S+/reset-password\?token=\S+", await tab.text_of("pre"))
        await tab.open(link)

        await tab.type_into('input[name="new_password"]', "short")
        problems = len(tab.problems)
        await tab.press("button")
        await tab.wait_for_text("output", "at least")
        # Chromium reports each 4xx of a call; only this one was meant to be one.
        assert ["422" in problem for problem in tab.problems[problems:]] == [True]
        del tab.problems[problems:]

        await tab.evaluate("document.querySelector('input').value = ''")
        await tab.type_into('input[name="new_password"]', NEW)
        await tab.press("button")
        await tab.wait_for_text("output", "Your new password is set")
        assert await tab.evaluate("document.querySelector('form').checkVisibility()") is False

        assert (await client.post("/v1/auth/login", json=account)).status_code == 401
        assert (await client.post("/v1/auth/login", json=account | {"password": NEW})).status_code == 200
    assert tab.problems == []
    assert tab.hosts == {urlsplit(url).netloc}
