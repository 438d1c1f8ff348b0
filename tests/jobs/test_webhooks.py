"""Webhooks: signatures a third party's library accepts, retries by schedule, and addresses nothing may reach."""

import asyncio
import base64
import ipaddress
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from app.jobs.api import JOB_KINDS
from app.jobs.errors import UrlBlocked
from app.jobs.records.webhooks import RETRY_DELAYS, breaker_pause, retry_after
from app.jobs.service.sending import WebhookSender, is_blocked
from app.jobs.settings import JobsSettings
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.application import Budget, free_port
from tests.fixtures.people import MakePerson, Person
from tests.jobs.kinds import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LOCAL = pytest.mark.settings(APP_JOBS_WEBHOOK_ALLOW="127.0.0.1/32", APP_JOBS_WEBHOOK_HTTP="true")


@dataclass
class Receiver:
    """Somebody's server. `answers` are given in turn; the last one for ever."""

    url: str
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(200, {})])
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    delay: float = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((dict(request.headers), body))
        await asyncio.sleep(self.delay)
        status, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers=headers, text="seen")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    port = free_port()
    made = Receiver(f"http://127.0.0.1:{port}/hook")
    application = web.Application()
    application.router.add_post("/hook", made.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield made
    await runner.cleanup()


async def register(person: Person, url: str, *event_types: str) -> dict[str, Any]:
    answer = await person.post("/v1/webhooks/endpoints", json={"url": url, "event_types": event_types or ["*"]})
    assert answer.status_code == 201, answer.text
    endpoint: dict[str, Any] = answer.json()
    return endpoint


async def settled(person: Person, count: int = 1) -> list[dict[str, Any]]:
    """The deliveries, once all of them are."""

    async def read() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await person.get("/v1/webhooks/deliveries")).json()["items"]
        return items

    async def are_settled() -> bool:
        items = await read()
        return len(items) == count and all(item["state"] != "pending" for item in items)

    await eventually(are_settled)
    return await read()


BLOCKED = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255
192.0.2.1 198.18.0.1 203.0.113.9 192.88.99.1 240.0.0.1 ::1 :: ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1
64:ff9b:1::1 2002:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 fe80::1 fc00::1 fd12::1 ff02::1 5f00::1
3fff::1 2001:db8::1 fec0::1 100::1
"""


@pytest.mark.parametrize("address", BLOCKED.split())
def test_an_address_that_is_not_public_is_blocked(address: str) -> None:
    assert is_blocked(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_a_public_address_is_not_blocked(address: str) -> None:
    assert not is_blocked(ipaddress.ip_address(address))


URLS = [
    "http://example.com/",
    "ftp://example.com/",
    "https://user:pass@example.com/",
    "https://example.com:22/",
    "https://",
    "https:///path",
    "example.com",
    "https://exa mple.com/",
    "https://example.com/#x",
    "https://exämple.com/",
    "https://127.0.0.1/",
    "https://localhost/",
    "https://[::1]/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://169.254.169.254/latest/meta-data",
    "https://example.com:99999/",
]


@pytest.mark.parametrize("url", URLS)
async def test_an_endpoint_at_a_bad_address_is_refused(person: Person, connection: Connection, url: str) -> None:
    answer = await person.post("/v1/webhooks/endpoints", json={"url": url, "event_types": ["*"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "url_blocked")
    assert await connection.fetchval("SELECT count(*) FROM jobs.webhook_endpoints") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "[::ffff:127.0.0.1]"])
async def test_no_connection_reaches_a_blocked_address(receiver: Receiver, host: str) -> None:
    sender = WebhookSender(JobsSettings(webhook_http=True))
    port = receiver.url.split(":")[2]
    try:
        answer = await sender.send(f"http://{host}:{port}", "id", 1, b"{}", [b"secret"])
    finally:
        await sender.close()
    # Some numeric forms are no web address to the HTTP client in the first place.
    assert answer.status is None
    assert answer.error in {"address_blocked", "protocol_error"}
    assert receiver.requests == []


async def test_a_url_is_checked_by_the_settings_of_the_installation() -> None:
    sender = WebhookSender(JobsSettings(webhook_http=True, webhook_allow=("127.0.0.0/8",)))
    await sender.check_url("http://127.0.0.1:8080/x")
    with pytest.raises(UrlBlocked):
        await sender.check_url("http://10.0.0.1/")


@LOCAL
async def test_a_message_is_signed_so_that_the_library_accepts_it(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    secret = endpoint["secret"]
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    sealed = await connection.fetchval("SELECT secret FROM jobs.webhook_endpoints")
    assert base64.b64decode(secret.removeprefix("whsec_")) not in sealed
    listed = (await person.get("/v1/webhooks/endpoints")).json()["items"]
    assert listed == [{name: value for name, value in endpoint.items() if name != "secret"}]

    async with open_worker(settings, JOB_KINDS):
        tested = await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
        assert (tested.status_code, tested.json()["event_type"]) == (202, "webhook.test")
        (delivery,) = await settled(person)
        assert (delivery["state"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 200)
        assert delivery["last_response"] == "seen"
        headers, body = receiver.requests[0]
        assert headers["webhook-id"] == delivery["message_id"]
        lower = {name.lower(): value for name, value in headers.items()}
        event = Webhook(secret).verify(body, lower)
        assert (event["type"], event["data"]) == ("webhook.test", {"endpoint_id": endpoint["id"]})

        rotated = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/rotate-secret")).json()
        assert rotated["secret"] != secret
        again = await person.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")
        assert again.status_code == 202
        await eventually(lambda: len(receiver.requests) == 2)
        headers, body = receiver.requests[1]
        lower = {name.lower(): value for name, value in headers.items()}
        assert lower["webhook-id"] == delivery["message_id"]
        for one in (secret, rotated["secret"]):
            assert Webhook(one).verify(body, lower) == event
        await settled(person)


@LOCAL
async def test_a_finished_job_is_an_event_for_who_wants_it(
    person: Person, make_person: MakePerson, receiver: Receiver, settings: Settings
) -> None:
    await register(person, receiver.url, "job.succeeded")
    await register(person, receiver.url, "job.failed", "invoice.issued")
    await register(await make_person(), receiver.url)
    async with open_worker(settings, JOB_KINDS):
        job = (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
        (delivery,) = await settled(person)
    assert delivery["event_type"] == "job.succeeded"
    assert len(receiver.requests) == 1
    event = json.loads(receiver.requests[0][1])
    assert (event["type"], event["data"]) == ("job.succeeded", {"job_id": job["id"], "kind": "export.events"})


@LOCAL
@pytest.mark.parametrize("status", [301, 400, 500])
async def test_what_is_not_taken_is_tried_again_by_the_schedule(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection, status: int
) -> None:
    receiver.answers = [(status, {"Location": receiver.url}), (200, {})]
    endpoint = await register(person, receiver.url)
    async with open_worker(settings, JOB_KINDS):
        await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
        await eventually(lambda: len(receiver.requests) == 1)

        async def is_waiting() -> bool:
            return bool(await connection.fetchval("SELECT next_at IS NOT NULL FROM jobs.webhook_deliveries"))

        await eventually(is_waiting)
        row = await connection.fetchrow(
            """
            SELECT d.state, d.attempts, d.last_status, extract(epoch FROM d.next_at - now())::float8 AS wait, e.failures
            FROM jobs.webhook_deliveries AS d, jobs.webhook_endpoints AS e
            """
        )
        assert row is not None
        assert (row["state"], row["attempts"], row["last_status"], row["failures"]) == ("pending", 1, status, 1)
        assert 3 < row["wait"] <= 6
        await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE kind = 'webhook.deliver'")
        (delivery,) = await settled(person)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2)
    assert await connection.fetchval("SELECT failures FROM jobs.webhook_endpoints") == 0


@LOCAL
async def test_410_ends_the_endpoint(person: Person, receiver: Receiver, settings: Settings) -> None:
    receiver.answers = [(410, {})]
    endpoint = await register(person, receiver.url)
    url = f"/v1/webhooks/endpoints/{endpoint['id']}"
    async with open_worker(settings, JOB_KINDS):
        await person.post(f"{url}/test")
        (delivery,) = await settled(person)
        assert (delivery["state"], delivery["last_status"]) == ("failed", 410)
        disabled = (await person.get(url)).json()
        assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "gone")
        await person.post(f"{url}/test")
        dropped = (await settled(person, 2))[0]
        assert (dropped["state"], dropped["last_error"]) == ("failed", "endpoint_disabled")
        assert len(receiver.requests) == 1
        assert (await person.post(f"{url}/enable")).json()["status"] == "active"


@LOCAL
async def test_a_slow_receiver_does_not_keep_others_waiting(
    person: Person, make_person: MakePerson, receiver: Receiver, settings: Settings
) -> None:
    port = free_port()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(20)
        finally:
            writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", port):
        slow = await make_person()
        stuck = await register(slow, f"http://127.0.0.1:{port}/")
        quick = await register(person, receiver.url)
        async with open_worker(settings, JOB_KINDS) as worker:
            for _ in range(40):
                await slow.post(f"/v1/webhooks/endpoints/{stuck['id']}/test")
            times = []
            for number in range(10):
                began = asyncio.get_running_loop().time()
                await person.post(f"/v1/webhooks/endpoints/{quick['id']}/test")
                await eventually(lambda count=number: len(receiver.requests) == count + 1)  # type: ignore[misc]
                times.append(asyncio.get_running_loop().time() - began)
            worker.runner.draining = True
    assert sorted(times)[8] < 1


def test_the_schedule_is_svix_spread_by_a_fifth() -> None:
    for attempt, delay in enumerate(RETRY_DELAYS, start=1):
        waits = [retry_after(attempt, None) for _ in range(300)]
        assert delay * 0.8 <= min(waits) < delay * 0.9
        assert delay * 1.1 < max(waits) <= delay * 1.2
    assert retry_after(1, 90.0) == 90.0
    assert retry_after(1, 1e9) == 3600


def test_the_breaker_opens_after_ten_failures_and_longer_each_time() -> None:
    assert breaker_pause(9) is None
    assert [breaker_pause(n) for n in (10, 11, 14, 15, 99)] == [
        timedelta(seconds=30),
        timedelta(seconds=60),
        timedelta(seconds=480),
        timedelta(minutes=15),
        timedelta(minutes=15),
    ]


@LOCAL
async def test_an_open_breaker_lets_one_probe_through_and_uses_no_attempt(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    until = datetime.now(UTC) + timedelta(hours=1)
    await connection.execute("UPDATE jobs.webhook_endpoints SET failures = 12, open_until = $1", until)
    async with open_worker(settings, JOB_KINDS):
        for _ in range(3):
            await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")

        async def are_put_off() -> bool:
            return bool(
                await connection.fetchval(
                    """
                    SELECT count(*) FROM jobs.jobs
                    WHERE kind = 'webhook.deliver' AND state = 0 AND attempt = 0 AND run_at > $1
                    """,
                    until,
                )
                == 3
            )

        await eventually(are_put_off)
        assert receiver.requests == []
        await connection.execute("UPDATE jobs.webhook_endpoints SET open_until = now()")
        await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE kind = 'webhook.deliver'")
        await eventually(lambda: len(receiver.requests) >= 1)
        await asyncio.sleep(0.2)
        row = await connection.fetchrow("SELECT failures, open_until FROM jobs.webhook_endpoints")
        assert row is not None
        assert (row["failures"], row["open_until"]) == (0, None)


async def test_an_endpoint_is_changed_and_deleted_by_its_owner_alone(
    person: Person, make_person: MakePerson, connection: Connection
) -> None:
    endpoint = await register(person, "https://1.1.1.1/a", "job.failed")
    url = f"/v1/webhooks/endpoints/{endpoint['id']}"
    stranger = await make_person()
    before = await connection.fetch("SELECT * FROM jobs.webhook_endpoints")
    for method, path, options in [
        ("GET", "", {}),
        ("PATCH", "", {"json": {"description": "x"}}),
        ("DELETE", "", {}),
        ("POST", "/rotate-secret", {}),
        ("POST", "/test", {}),
        ("POST", "/enable", {}),
    ]:
        assert (await stranger.request(method, url + path, **options)).status_code == 404, method + path
    assert await connection.fetch("SELECT * FROM jobs.webhook_endpoints") == before
    changed = await person.patch(url, json={"url": "https://1.1.1.1/b", "description": "new"})
    assert (changed.status_code, changed.json()["url"], changed.json()["description"]) == (
        200,
        "https://1.1.1.1/b",
        "new",
    )
    assert changed.json()["event_types"] == ["job.failed"]
    assert (await person.patch(url, json={"description": None})).json()["description"] is None
    assert (await person.patch(url, json={"event_types": ["no.such"]})).status_code == 422
    assert (await person.patch(url, json={"url": "https://127.0.0.1/"})).json()["code"] == "url_blocked"
    assert (await person.delete(url)).status_code == 204
    assert (await person.delete(url)).status_code == 404


async def test_an_account_has_at_most_twenty_endpoints(person: Person) -> None:
    for number in range(20):
        await register(person, f"https://1.1.1.1/{number}")
    answer = await person.post("/v1/webhooks/endpoints", json={"url": "https://1.1.1.1/", "event_types": ["*"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_endpoints")


async def test_the_catalogue_is_listed(person: Person) -> None:
    items = (await person.get("/v1/webhooks/event-types")).json()["items"]
    assert {"user.registered", "session.revoked", "job.succeeded", "invoice.issued"} <= {item["type"] for item in items}


async def test_deliveries_of_others_do_not_exist(person: Person) -> None:
    answer = await person.post(f"/v1/webhooks/deliveries/{UUID(int=1)}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")


async def published(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
    rows = await connection.fetch(
        "SELECT user_id, lane, args::text FROM jobs.jobs WHERE kind = 'webhook.publish' ORDER BY id"
    )
    assert all(row["lane"] == "webhooks" and row["user_id"] is not None for row in rows)
    events = [json.loads(row["args"]) for row in rows]
    return [(event["event_type"], event["data"]) for event in events]


async def test_who_does_not_listen_pays_nothing(person: Person, connection: Connection, budget: Budget) -> None:
    with budget(1):
        assert (await person.patch("/v1/users/me", json={"bio": "a"})).status_code == 200
    with budget(1):
        assert (await person.post("/v1/auth/logout")).status_code == 204
    assert await published(connection) == []


@LOCAL
async def test_changes_of_an_account_are_events_for_who_listens(
    person: Person, make_person: MakePerson, receiver: Receiver, connection: Connection, settings: Settings
) -> None:
    await register(person, receiver.url)
    stranger = await make_person()
    assert (await stranger.patch("/v1/users/me", json={"bio": "b"})).status_code == 200
    assert (await person.patch("/v1/users/me", json={"bio": "a", "display_name": "A"})).status_code == 200
    assert (await person.patch("/v1/users/me", json={"bio": "c"}, headers={"If-Match": '"x"'})).status_code == 412
    login = {"email": person.email, "password": person.password}
    other = (await person.client.post("/v1/auth/login", json=login)).json()["tokens"]["access_token"]
    ended = await person.client.post("/v1/auth/logout", headers={"Authorization": f"Bearer {other}"})
    assert ended.status_code == 204
    closed = await person.request("DELETE", "/v1/users/me", json={"current_password": person.password})
    assert closed.status_code == 202
    revoked = await connection.fetch(
        "SELECT id, revoke_reason FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NOT NULL", person.id
    )
    sessions = {row["revoke_reason"]: str(row["id"]) for row in revoked}
    me = str(person.id)
    assert await published(connection) == [
        ("user.updated", {"user_id": me, "fields": ["bio", "display_name"]}),
        ("session.revoked", {"session_id": sessions["logged_out"], "reason": "logged_out"}),
        ("session.revoked", {"session_id": sessions["account_deleted"], "reason": "account_deleted"}),
        ("user.deleted", {"user_id": me}),
    ]
    async with open_worker(settings, JOB_KINDS):
        await eventually(lambda: len(receiver.requests) == 4)
    assert sorted(json.loads(body)["type"] for _, body in receiver.requests) == [
        "session.revoked",
        "session.revoked",
        "user.deleted",
        "user.updated",
    ]


@LOCAL
async def test_a_job_that_ends_in_its_own_transaction_or_with_its_workers_is_an_event_too(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    await register(person, receiver.url, "job.succeeded", "job.failed")
    period = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-09T00:00:00Z", "mail": True}
    made = (await person.post("/v1/jobs", json={"kind": "report.activity", "args": period})).json()
    poison = (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
    await connection.execute(
        """
        UPDATE jobs.jobs SET state = 1, attempt = 8, max_attempts = 8, run_token = gen_random_uuid(),
                             worker_id = 'gone', started_at = now(), lease_until = now() - interval '1 minute',
                             dispatched_at = NULL
        WHERE id = $1
        """,
        UUID(poison["id"]),
    )
    jobs = settings.jobs.model_copy(update={"heartbeat": 0.1, "lease": 1.0})
    async with open_worker(settings.model_copy(update={"jobs": jobs}), JOB_KINDS):
        await eventually(lambda: len(receiver.requests) == 2)
    events = [json.loads(body) for _, body in receiver.requests]
    assert {event["type"]: event["data"] for event in events} == {
        "job.succeeded": {"job_id": made["id"], "kind": "report.activity"},
        "job.failed": {"job_id": poison["id"], "kind": "export.events"},
    }
