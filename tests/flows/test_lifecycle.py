"""The end of an API process that has work in it."""

import asyncio
import signal

import httpx

from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan, LiveServer, Processes
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, register
from tests.fixtures.waiting import eventually, scaled

# The longest that a client may ask to wait, in seconds: an answer before its end was given because the server leaves.
WAIT = 30


async def test_who_waits_for_a_job_is_told_and_readiness_ends(live_server: LiveServer, processes: Processes) -> None:
    """A job that no worker takes would be watched for ever."""
    base = await live_server(APP_CONNECTIONS_DRAIN_DELAY="5")
    (server,) = processes._running
    async with http_client(base, timeout=scaled(20)) as client:
        person = await register(client)
        job = (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
        lines: list[str] = []

        async def watch() -> None:
            headers = {"Authorization": f"Bearer {person.tokens['access_token']}"}
            async with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as stream:
                async for line in stream.aiter_lines():
                    lines.extend([line] if line else [])

        watching = asyncio.create_task(watch())
        waiting = asyncio.create_task(person.get(f"/v1/jobs/{job['id']}", headers={"Prefer": f"wait={WAIT}"}))
        await eventually(lambda: len(lines) > 0)
        await asyncio.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        await eventually(lambda: is_leaving(client))
        await watching
        assert lines[-3:] == ["event: shutdown", "data: {}", "retry: 1000"]
        assert lines[0] == "event: state"
        answer = await asyncio.wait_for(waiting, WAIT)
        assert (answer.status_code, answer.headers["preference-applied"]) == (200, f"wait={WAIT}")
        assert answer.json()["state"] == "queued"
    assert await asyncio.wait_for(server.wait(), scaled(30)) == 0


async def test_who_comes_when_the_process_ends_does_not_wait(running_app: Lifespan, person: Person) -> None:
    job = (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
    draining = running_app._state["draining"] = asyncio.Event()
    draining.set()
    async with asyncio.timeout(WAIT):
        stream = await person.get(f"/v1/jobs/{job['id']}/events")
        answer = await person.get(f"/v1/jobs/{job['id']}", headers={"Prefer": f"wait={WAIT}"})
    assert stream.text.split() == ["event:", "shutdown", "data:", "{}", "retry:", "1000"]
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


async def is_leaving(client: httpx.AsyncClient) -> bool:
    answer = await client.get("/readyz")
    if answer.status_code == 200:
        return False
    problem_of(answer, 503, "not_ready")
    assert answer.headers["connection"] == "close"
    return True


async def test_heads_over_the_wire(live_server: LiveServer) -> None:
    """One connection: an answer of a wrong length would spoil the next one."""
    base = await live_server()
    async with http_client(base, timeout=scaled(20), limits=httpx.Limits(max_connections=1)) as client:
        for path in ("/livez", "/readyz", "/v1/users/me", "/nothing", "/docs", "/metrics"):
            head, whole = await client.head(path), await client.get(path)
            assert head.status_code == whole.status_code
            assert head.content == b""
            if path != "/metrics":
                assert abs(int(head.headers["content-length"]) - len(whole.content)) <= 2
