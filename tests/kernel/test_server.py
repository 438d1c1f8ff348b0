"""How server processes begin, follow each other and end, with a small application in them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from app.kernel.observability.watchdog import EXIT_STUCK
from benchmarks.client import ask
from benchmarks.keepalive_clients import KeepaliveClients
from benchmarks.load import request
from tests.faults.signals import frozen
from tests.fixtures.application import ROOT, free_port
from tests.fixtures.embedded import arguments_of
from tests.fixtures.waiting import eventually, scaled

pytestmark = pytest.mark.slow

Process = asyncio.subprocess.Process
PIPE = asyncio.subprocess.PIPE
Start = Callable[..., Awaitable[Process]]
ROOT_REQUEST = request("GET", "/")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def start(port: int) -> AsyncIterator[Start]:
    """Starts a server on the port of this test, and waits until it answers."""
    started: list[Process] = []

    async def start_one(
        *, workers: int = 1, grace: int = 5, takeover: bool = False, stdout: int = PIPE, **variables: str
    ) -> Process:
        arguments = [str(port), str(workers), str(grace), *(["takeover"] if takeover else [])]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kernel.small_application", *arguments),
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=stdout,
            stderr=asyncio.subprocess.DEVNULL,
        )
        started.append(process)
        if not takeover and "FAIL" not in variables:
            await eventually(lambda: answers(port))
        return process

    yield start_one
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def answers(port: int) -> bool:
    try:
        return (await ask(port, ROOT_REQUEST))[0] == 200
    except OSError:
        return False


async def ended(process: Process) -> int:
    return await asyncio.wait_for(process.wait(), scaled(30))


def servers_below(process: Process) -> set[int]:
    """The ids of the group's processes that run."""
    children = psutil.Process(process.pid).children()
    return {child.pid for child in children if "multiprocessing.spawn" in arguments_of(child)}


async def test_replacements_lose_no_request(port: int, start: Start) -> None:
    group = await start(workers=2)
    await eventually(lambda: len(servers_below(group)) == 2)
    before = servers_below(group)
    async with KeepaliveClients(port, [ROOT_REQUEST], [0.0, 0.001, 0.02, 0.05]) as clients:
        await clients.until(100)
        group.send_signal(signal.SIGHUP)
        await eventually(lambda: len(after := servers_below(group)) == 2 and not after & before)
        await clients.until(clients.total + 100)
    assert clients.lost == {}
    assert set(clients.statuses) == {200}
    # One that dies takes along what is inside it, and is replaced too.
    with pytest.raises(ConnectionError):
        await ask(port, request("GET", "/die"))
    assert (await ask(port, ROOT_REQUEST))[0] == 200
    await eventually(lambda: len(servers_below(group)) == 2)
    group.send_signal(signal.SIGTERM)
    assert await ended(group) == 0


async def test_a_group_that_cannot_start_ends(start: Start) -> None:
    group = await start(workers=2, FAIL="1")
    assert await ended(group) == 3


async def test_a_new_server_takes_over(port: int, start: Start) -> None:
    old = await start()
    async with KeepaliveClients(port, [ROOT_REQUEST], [0.0, 0.001, 0.02, 0.05]) as clients:
        await clients.until(100)
        new = await start(takeover=True)
        assert await ended(old) == 0
        await clients.until(clients.total + 100)
    assert clients.lost == {}
    assert set(clients.statuses) == {200}
    _, body = await ask(port, ROOT_REQUEST)
    assert body == f"{new.pid} False".encode()


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """One that takes nothing more, as that of a reader which has stopped."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b"-" * 4096):
            pass
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


async def test_the_end(port: int, start: Start, full_pipe: int) -> None:
    """New connections are served until the delay is over; what is inside is cancelled after the grace. That the
    log is not read changes nothing.
    """
    server = await start(grace=1, stdout=full_pipe, DRAIN_DELAY="3")
    waiting = asyncio.create_task(ask(port, request("GET", "/wait")))
    await eventually(lambda: is_inside(port))
    server.send_signal(signal.SIGTERM)
    await eventually(lambda: is_draining(port))
    assert await ended(server) == 0
    status, body = await waiting
    assert status == 503
    assert b'"code":"unavailable"' in body


async def is_inside(port: int) -> bool:
    """Whether the request that hangs has reached the application."""
    return (await ask(port, request("GET", "/hanging")))[1] == b"1"


async def is_draining(port: int) -> bool:
    return (await ask(port, ROOT_REQUEST))[1].endswith(b"True")


async def test_what_hangs_is_ended(port: int, start: Start) -> None:
    """A second after the grace a task that cannot be cancelled is left behind, and all else after some more."""
    server = await start(grace=0)
    hanging = asyncio.create_task(ask(port, request("GET", "/hang")))
    await eventually(lambda: is_inside(port))
    server.send_signal(signal.SIGTERM)
    assert await ended(server) == 1
    with pytest.raises(ConnectionError):
        await hanging


async def test_a_loop_that_stands_still_ends_its_process(port: int, start: Start) -> None:
    server = await start(MAX_STALL="2")
    # A process that was stopped as a whole is not killed.
    with frozen(server.pid):
        await asyncio.sleep(2.5)
    await asyncio.sleep(0.3)
    assert (await ask(port, ROOT_REQUEST))[0] == 200
    with pytest.raises(ConnectionError):
        await ask(port, request("GET", "/block"))
    assert await ended(server) == EXIT_STUCK
    assert server.stdout is not None
    said = (await server.stdout.read()).decode()
    assert "the event loop does not go on" in said
    assert "time.sleep(_AN_HOUR)" in said
