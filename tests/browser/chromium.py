"""A tab of a real Chromium, driven by the Chrome DevTools Protocol."""

import asyncio
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tests.fixtures.waiting import eventually, scaled

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Containers have little shared memory.
    "--disable-dev-shm-usage",
    "about:blank",
)


def program() -> str:
    """Of `TEST_CHROMIUM` or the PATH. Without one the tests fail: `make browser` is asked for by name."""
    found = os.environ.get("TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"none of {', '.join(NAMES)} is on the PATH; TEST_CHROMIUM may name one"
    return found


class Tab:
    """One tab. `problems` collects what its console and network complain of, `hosts` where its requests went."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()

    async def listen(self) -> None:
        """Take in everything that the browser reports, until the connection ends."""
        async for message in self._socket:
            content = json.loads(message.data)
            if (number := content.get("id")) is not None:
                self._answers.pop(number).set_result(content)
            else:
                self._take(content["method"], content["params"])

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(scaled(20)):
            answer = await self._answers[number]
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Returns when the page and what it refers to have been loaded."""
        self._loaded.clear()
        assert "errorText" not in await self.call("Page.navigate", url=url), url
        async with asyncio.timeout(scaled(20)):
            await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression of JavaScript."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def text_of(self, selector: str) -> str:
        """The visible text of the first element that fits; empty if there is none."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def type_into(self, selector: str, text: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def wait_for_text(self, selector: str, text: str) -> None:
        async def is_there() -> bool:
            return text in await self.text_of(selector)

        await eventually(is_there, within=20)

    def _take(self, method: str, parameters: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent":
                address = urlsplit(parameters["request"]["url"])
                # `data:` and `blob:` are parts of the page itself.
                if address.scheme not in {"data", "blob"}:
                    self.hosts.add(address.netloc)
            case "Runtime.exceptionThrown":
                self.problems.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in {"error", "warning"}:
                self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser without history, cookies or cache, and its only tab."""
    with tempfile.TemporaryDirectory(prefix="onehop-chromium-", ignore_cleanup_errors=True) as profile:
        # The sandbox of Chromium does not work for root.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec(
            *(program(), *sandbox, f"--user-data-dir={profile}", *SWITCHES),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile))
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [target for target in await answer.json() if target["type"] == "page"]
                async with client.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = Tab(socket)
                    listening = asyncio.create_task(tab.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await tab.call(f"{domain}.enable")
                    yield tab
                    await tab.call("Browser.close")
                    await listening
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _port(profile: Path) -> int:
    """Chromium chooses one and writes it down."""
    file = profile / "DevToolsActivePort"
    await eventually(lambda: file.exists() and file.read_text().count("\n") > 0, within=20)
    return int(file.read_text().splitlines()[0])
