"""The whole story over a real server and a real worker, each a process of its own; with Redis, and without."""

import asyncio
import csv
import io
import re
from pathlib import Path

import pytest

from app.dev.embedded import EmbeddedValkey
from tests.fixtures.answers import problem_of
from tests.fixtures.application import ROOT, LiveServer, LiveWorker
from tests.fixtures.http import http_client
from tests.fixtures.people import register
from tests.fixtures.waiting import scaled

QUICKSTART = ROOT / "docs" / "quickstart.md"


async def live_through(base: str) -> None:
    """Sign up, look, record, change, export, download, log out."""
    async with http_client(base, timeout=scaled(40)) as client:
        person = await register(client, display_name="Ada")
        overview = (await person.get("/v1/overview")).json()
        assert (overview["user"]["display_name"], overview["recent_events"]) == ("Ada", [])
        assert overview["jobs"] == {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "recent": []}

        body = {"events": [{"kind": f"kind.{n}", "properties": {"n": n, "text": 'ü,"\n'}} for n in range(3)]}
        stored = await person.post("/v1/events", json=body)
        assert (stored.status_code, stored.json()["accepted"]) == (201, 3)
        changed = await person.patch("/v1/users/me/preferences", json={"theme": "dark"})
        assert changed.status_code == 200
        overview = (await person.get("/v1/overview")).json()
        assert overview["preferences"]["theme"] == "dark"
        assert {event["id"] for event in overview["recent_events"]} == set(stored.json()["ids"])

        job = await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
        assert job.status_code == 202
        assert job.headers["location"] == f"/v1/jobs/{job.json()['id']}"
        done = (await person.get(job.headers["location"], headers={"Prefer": "wait=30"})).json()
        assert (done["state"], done["attempt"], done["error"]) == ("succeeded", 1, None)
        (artifact,) = done["artifacts"]
        address = f"/v1/jobs/{done['id']}/artifacts/{artifact['name']}"
        file = await person.get(address)
        assert (file.status_code, len(file.content)) == (200, artifact["size"])
        rows = list(csv.DictReader(io.StringIO(file.text)))
        assert sorted(row["kind"] for row in rows) == ["kind.0", "kind.1", "kind.2"]
        assert (await person.get("/v1/overview")).json()["jobs"]["succeeded"] == 1
        # Whose file it is.
        stranger = await register(client)
        assert (await stranger.get(address)).status_code == 404

        assert (await person.post("/v1/auth/logout")).status_code == 204
        problem_of(await person.get("/v1/overview"), 401, "token_revoked")
        spent = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
        problem_of(spent, 401, "invalid_refresh_token")


async def test_the_story(live_server: LiveServer, live_worker: LiveWorker) -> None:
    base = await live_server()
    await live_worker()
    await live_through(base)


async def test_the_story_without_redis(
    live_server: LiveServer, live_worker: LiveWorker, valkey: EmbeddedValkey
) -> None:
    """Redis is stopped for good once everything runs: it may only become slower."""
    base = await live_server()
    await live_worker()
    valkey.stop()
    try:
        await live_through(base)
        async with http_client(base, timeout=scaled(20)) as client:
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["redis"]) == (200, "degraded")
    finally:
        valkey.start()


async def test_the_story_when_redis_never_was_there(
    live_server: LiveServer, live_worker: LiveWorker, tmp_path: Path
) -> None:
    address = f"unix://{tmp_path}/absent.sock?db=0"
    base = await live_server(REDIS_URL=address)
    await live_worker()
    await live_through(base)


async def run_shell(script: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-c", script),
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_quickstart(live_server: LiveServer, live_worker: LiveWorker) -> None:
    """Runs the shell blocks of docs/quickstart.md as they stand there."""
    text = await asyncio.to_thread(QUICKSTART.read_text)
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    base = await live_server()
    await live_worker()
    status, output = await run_shell("\n".join(blocks), BASE=base)
    assert status == 0, output
    lines = output.splitlines()
    assert lines[-2:] == ["204", "401"], output
    assert "304" in lines
    assert '"theme":"dark"' in output
    assert "page.viewed," in output.partition('"state":"succeeded"')[2]


@pytest.mark.parametrize("name", ["architecture.md", "adding-a-module.md", "operations.md"])
def test_links_of_the_quickstart(name: str) -> None:
    assert f"({name})" in QUICKSTART.read_text(encoding="utf-8")
    assert QUICKSTART.with_name(name).exists()
