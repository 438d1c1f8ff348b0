"""Webhooks: signatures a third party's library accepts, retries by schedule, and endpoints as their owner sees them."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
from standardwebhooks import Webhook

from app.jobs.api import JOB_KINDS
from app.jobs.records.webhooks import RETRY_DELAYS, breaker_pause, retry_after
from app.jobs.service import sending
from app.jobs.service.publishing import DELIVERY_TIMEOUT
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register, settled, try_again_now

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


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
            SELECT d.state, d.attempts, d.last_status, e.failures,
                   extract(epoch FROM d.next_at - e.failing_since)::float8 AS wait
            FROM jobs.webhook_deliveries AS d, jobs.webhook_endpoints AS e
            """
        )
        assert row is not None
        assert (row["state"], row["attempts"], row["last_status"], row["failures"]) == ("pending", 1, status, 1)
        assert 3 < row["wait"] <= 6
        await try_again_now(connection)
        (delivery,) = await settled(person)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2)
    assert await connection.fetchval("SELECT failures FROM jobs.webhook_endpoints") == 0


@LOCAL
async def test_what_was_redelivered_is_not_tried_again(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    receiver.answers = [(500, {}), (200, {})]
    endpoint = await register(person, receiver.url)
    async with open_worker(settings, JOB_KINDS):
        tested = await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")

        async def is_waiting() -> bool:
            # The delivery is noted a moment before its job is put back.
            query = "SELECT count(*) = 1 FROM jobs.jobs WHERE kind = 'webhook.deliver' AND state = 0 AND attempt = 1"
            return bool(await connection.fetchval(query))

        await eventually(is_waiting)
        await person.post(f"/v1/webhooks/deliveries/{tested.json()['id']}/redeliver")
        await settled(person)
        (job,) = await connection.fetch("SELECT id FROM jobs.jobs WHERE kind = 'webhook.deliver'")

        async def is_over() -> bool:
            return bool(await connection.fetchval("SELECT state = 2 FROM jobs.jobs WHERE id = $1", job["id"]))

        await eventually(is_over)
    assert len(receiver.requests) == 2


@LOCAL
async def test_a_receiver_may_ask_for_time_but_not_for_more_than_five_days(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    receiver.answers = [(503, {"Retry-After": "120"})]
    endpoint = await register(person, receiver.url)
    url = f"/v1/webhooks/endpoints/{endpoint['id']}"
    async with open_worker(settings, JOB_KINDS):
        await person.post(f"{url}/test")

        async def wait() -> float | None:
            seconds: float | None = await connection.fetchval(
                "SELECT extract(epoch FROM next_at - now())::float8 FROM jobs.webhook_deliveries"
            )
            return seconds

        async def is_waiting() -> bool:
            return await wait() is not None

        await eventually(is_waiting)
        assert 100 < (await wait() or 0) <= 120
        assert (await person.get(url)).json()["status"] == "active"
        await connection.execute("UPDATE jobs.webhook_endpoints SET failing_since = now() - interval '5 days 1 minute'")
        await try_again_now(connection)

        async def is_disabled() -> bool:
            return bool((await person.get(url)).json()["disabled_reason"] == "failing")

        await eventually(is_disabled)


async def never_sent(person: Person, delivery_id: str) -> None:
    shown = (await person.get(f"/v1/webhooks/deliveries/{delivery_id}")).json()
    assert (shown["attempts"], shown["last_ms"], shown["history"]) == (0, None, [])


@LOCAL
async def test_a_secret_that_another_key_has_sealed_fails_a_message_for_good(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    url = f"/v1/webhooks/endpoints/{endpoint['id']}"
    await connection.execute("UPDATE jobs.webhook_endpoints SET secret = decode(repeat('00', 60), 'hex')")
    async with open_worker(settings, JOB_KINDS):
        await person.post(f"{url}/test")
        (delivery,) = await settled(person)
        assert (delivery["state"], delivery["last_error"]) == ("failed", "secret_unreadable")
        await never_sent(person, delivery["id"])
        assert receiver.requests == []
        # A rotation mends it, though the old one, which would sign for a day more, cannot be read.
        assert (await person.post(f"{url}/rotate-secret")).status_code == 200
        await person.post(f"{url}/test")
        assert {item["state"] for item in await settled(person, 2)} == {"failed", "delivered"}


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
        await never_sent(person, dropped["id"])
        assert len(receiver.requests) == 1
        assert (await person.post(f"{url}/enable")).json()["status"] == "active"


@LOCAL
async def test_a_slow_receiver_does_not_keep_others_waiting(
    person: Person,
    make_person: MakePerson,
    receiver: Receiver,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "_TOTAL_SECONDS", 3600)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Until the client goes: since Python 3.12 a server that closes waits for its connections.
        try:
            await reader.read()
        finally:
            writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        slow = await make_person()
        stuck = [await register(slow, f"http://127.0.0.1:{port}/") for _ in range(4)]
        quick = await register(person, receiver.url)
        async with open_worker(settings, JOB_KINDS) as worker:
            for endpoint in stuck * 10:
                assert (await slow.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).status_code == 202
            # Before the first of the slow ones is given up.
            async with asyncio.timeout(DELIVERY_TIMEOUT):
                for number in range(10):
                    await person.post(f"/v1/webhooks/endpoints/{quick['id']}/test")
                    await eventually(lambda count=number: len(receiver.requests) == count + 1)  # type: ignore[misc]
            worker.runner.draining = True


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

        async def is_forgiven() -> bool:
            row = await connection.fetchrow("SELECT failures, open_until FROM jobs.webhook_endpoints")
            return row is not None and tuple(row) == (0, None)

        await eventually(is_forgiven)


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


async def test_endpoints_are_made_once_a_key_and_listed_by_pages(person: Person) -> None:
    body = {"url": "https://1.1.1.1/", "event_types": ["*"]}
    first, second, other = [
        await person.post("/v1/webhooks/endpoints", json=body, headers={"Idempotency-Key": key}) for key in "aab"
    ]
    assert [answer.status_code for answer in (first, second, other)] == [201, 201, 201]
    assert second.headers["idempotent-replayed"] == "true"
    assert (second.json(), second.headers["location"]) == (first.json(), first.headers["location"])
    page = (await person.get("/v1/webhooks/endpoints?limit=1")).json()
    rest = (await person.get("/v1/webhooks/endpoints", params={"cursor": page["next_cursor"]})).json()
    assert [item["id"] for item in page["items"] + rest["items"]] == [first.json()["id"], other.json()["id"]]
    assert rest["next_cursor"] is None


async def test_the_catalogue_is_listed(person: Person) -> None:
    items = (await person.get("/v1/webhooks/event-types")).json()["items"]
    assert [item["type"] for item in items] == [
        "invoice.issued",
        "job.failed",
        "job.succeeded",
        "session.revoked",
        "user.deleted",
        "user.registered",
        "user.updated",
    ]


async def test_deliveries_of_others_do_not_exist(person: Person) -> None:
    answer = await person.post(f"/v1/webhooks/deliveries/{UUID(int=1)}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")
