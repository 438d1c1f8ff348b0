"""A revoked token is dead in every process when the caller is told so, also while everything around them fails."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from app.identity.api import IdentityServices
from app.identity.service.tokens import hash_secret, new_secret
from app.kernel.resources import Resources
from tests.fixtures.answers import problem_of
from tests.fixtures.application import LiveServer, Processes
from tests.fixtures.clocks import ManualClock
from tests.fixtures.http import http_client
from tests.fixtures.people import PASSWORD, Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, scaled
from tests.identity.conftest import LogIn

# So many that each process gets some: a chance of one in 200,000 that one gets none.
REQUESTS = 30
WORKERS = 3


@dataclass
class Cluster:
    """Several processes behind one port."""

    url: str
    client: httpx.AsyncClient
    connection: Connection
    restart: Callable[[], Awaitable[str]]

    async def statuses(
        self, token: object = None, *, cookie: str | None = None, path: str = "/v1/users/me"
    ) -> Counter[int]:
        """Of as many requests over connections of their own, so that they spread over the processes."""
        limits = httpx.Limits(max_connections=REQUESTS, max_keepalive_connections=0)
        credential = {"Authorization": f"Bearer {token}"} if cookie is None else {"Cookie": cookie}
        headers = {**credential, "Connection": "close"}
        async with http_client(self.url, limits=limits, timeout=scaled(20)) as client:
            answers = await asyncio.gather(*(client.get(path, headers=headers) for _ in range(REQUESTS)))
        return Counter(answer.status_code for answer in answers)

    async def lets_in(self, person: Person) -> bool:
        return await self.statuses(person.tokens["access_token"]) == {200: REQUESTS}

    async def person(self) -> Person:
        """A user whose token every process has verified before."""
        person = await register(self.client)
        assert await self.statuses(person.tokens["access_token"]) == {200: REQUESTS}
        return person

    async def cookie_of(self, person: Person) -> str:
        """The cookie of a new session."""
        body = {"email": person.email, "password": person.password, "transport": "cookie"}
        answer = await self.client.post("/v1/auth/login", json=body)
        self.client.cookies.clear()
        return str(answer.headers["set-cookie"].partition(";")[0])

    async def again(self, person: Person, **fields: str) -> Person:
        body = {"email": person.email, "password": person.password} | fields
        answer = await self.client.post("/v1/auth/login", json=body)
        assert answer.status_code == 200, answer.text
        return Person(self.client, person.id, body["email"], body["password"], answer.json()["tokens"])


@pytest.fixture
async def cluster(live_server: LiveServer, processes: Processes, connection: Connection) -> AsyncIterator[Cluster]:
    url = await live_server(workers=WORKERS)

    async def restart() -> str:
        await processes.stop()
        return await live_server(workers=WORKERS)

    async with http_client(url, timeout=scaled(20)) as client:
        yield Cluster(url, client, connection, restart)


Act = Callable[[Cluster, Person, Person], Awaitable[httpx.Response]]


async def _own_key(cluster: Cluster, person: Person, admin: Person) -> httpx.Response:
    ids = [item["id"] for item in (await person.get("/v1/auth/api-keys")).json()["items"]]
    return await person.delete(f"/v1/auth/api-keys/{ids[0]}")


async def _own_session(cluster: Cluster, person: Person, admin: Person) -> httpx.Response:
    other = await cluster.again(person)
    items = (await other.get("/v1/auth/sessions")).json()["items"]
    return await other.delete(f"/v1/auth/sessions/{next(item['id'] for item in items if not item['current'])}")


async def _reset(cluster: Cluster, person: Person, admin: Person) -> httpx.Response:
    """With a link as the worker makes it for its letter."""
    token = new_secret()
    await cluster.connection.execute(
        """
        INSERT INTO identity.one_time_tokens (user_id, purpose, token_hash, expires_at, version)
        SELECT user_id, 'reset_password', $2, now() + interval '1 hour', version
          FROM identity.accounts WHERE user_id = $1
        """,
        person.id,
        hash_secret(token),
    )
    return await cluster.client.post(
        "/v1/auth/password/reset", json={"token": token, "new_password": "a new horse 2026"}
    )


def _patch(role: str) -> Act:
    return lambda _, person, admin: admin.patch(f"/v1/admin/users/{person.id}", json={"role": role})


ACTS: dict[str, Act] = {
    "log-out": lambda _, person, __: person.post("/v1/auth/logout"),
    "log-out by the refresh token": lambda cluster, person, _: cluster.client.post(
        "/v1/auth/logout", json={"refresh_token": person.tokens["refresh_token"]}
    ),
    "revocation": lambda cluster, person, _: cluster.client.post(
        "/v1/auth/revoke", data={"token": person.tokens["access_token"]}
    ),
    "log-out everywhere": lambda _, person, __: person.post("/v1/auth/logout-all"),
    "end of a session": _own_session,
    "change of the password": lambda _, person, __: person.post(
        "/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": "a new horse 2026"}
    ),
    "reset of the password": _reset,
    "sessions ended by an administrator": lambda _, person, admin: admin.delete(
        f"/v1/admin/users/{person.id}/sessions"
    ),
    "another role": _patch("admin"),
    "a ban": lambda _, person, admin: admin.post(f"/v1/admin/users/{person.id}/ban"),
    "deletion": lambda _, person, __: person.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD}),
}


@pytest.mark.slow
async def test_after_the_answer_no_process_accepts_the_token(cluster: Cluster, connection: Connection) -> None:
    admin = await register(cluster.client)
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", admin.id)
    admin = await cluster.again(admin)
    dead: dict[str, Any] = {}
    for name, act in ACTS.items():
        person = await cluster.person()
        answer = await act(cluster, person, admin)
        assert answer.is_success, (name, answer.text)
        dead[name] = person.tokens["access_token"]
        assert await cluster.statuses(dead[name]) == {401: REQUESTS}, name
    person = await cluster.person()
    key = (await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    assert await cluster.statuses(key) == {200: REQUESTS}
    assert (await _own_key(cluster, person, admin)).status_code == 204
    assert await cluster.statuses(key) == {401: REQUESTS}
    ended, left = [await cluster.cookie_of(person) for _ in range(2)]
    assert await cluster.statuses(cookie=ended) == {200: REQUESTS}
    page = {"Cookie": ended, "Sec-Fetch-Site": "same-origin"}
    assert (await cluster.client.post("/v1/auth/logout", headers=page)).status_code == 204
    assert await cluster.statuses(cookie=ended) == {401: REQUESTS}

    cluster.url = await cluster.restart()
    assert await cluster.statuses(cookie=ended) == {401: REQUESTS}
    assert await cluster.statuses(cookie=left) == {200: REQUESTS}
    for name, token in (dead | {"end of a key": key}).items():
        assert await cluster.statuses(token) == {401: REQUESTS}, name
    assert await cluster.statuses(person.tokens["access_token"]) == {200: REQUESTS}


@pytest.mark.slow
async def test_without_redis_the_dead_stay_dead_and_the_living_live(
    cluster: Cluster, valkey: EmbeddedValkey, postgres: EmbeddedPostgres
) -> None:
    before, during, living = [await cluster.person() for _ in range(3)]
    await before.post("/v1/auth/logout")
    valkey.stop()
    try:
        assert await cluster.statuses(before.tokens["access_token"]) == {401: REQUESTS}
        assert await cluster.statuses(living.tokens["access_token"]) == {200: REQUESTS}
        assert (await during.post("/v1/auth/logout")).status_code == 204
        assert await cluster.statuses(during.tokens["access_token"]) == {401: REQUESTS}
        # Without a server left to ask, no token is accepted.
        postgres.stop(mode="immediate")
        try:
            for person in (before, during, living):
                assert await cluster.statuses(person.tokens["access_token"]) == {503: REQUESTS}
        finally:
            # From this thread, for the server ends with the one that started it.
            postgres.start()
        await eventually(lambda: cluster.lets_in(living))
    finally:
        valkey.start()
    await asyncio.sleep(1)
    for person, status in ((before, 401), (during, 401), (living, 200)):
        assert await cluster.statuses(person.tokens["access_token"]) == {status: REQUESTS}


@pytest.mark.slow
async def test_a_process_that_stood_still_wakes_up_with_nothing_to_be_fooled_by(cluster: Cluster) -> None:
    """As a paused container does. Requests wait in its socket before the news do."""
    person, living = await cluster.person(), await cluster.person()
    workers = _workers(cluster.url)
    assert len(workers) == WORKERS
    for pid in workers[1:]:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Until the kernel gives the connection to the one that is awake.
        answer = None
        while answer is None:
            try:
                async with http_client(cluster.url, timeout=1.5) as client:
                    answer = await client.post("/v1/auth/logout", headers=person.headers)
            except httpx.TimeoutException:
                pass
        assert answer.status_code == 204
        asking = asyncio.create_task(cluster.statuses(person.tokens["access_token"]))
        await asyncio.sleep(0.5)
    finally:
        for pid in workers[1:]:
            os.kill(pid, signal.SIGCONT)
    assert await asking == {401: REQUESTS}
    assert await cluster.statuses(living.tokens["access_token"]) == {200: REQUESTS}


def _workers(url: str) -> list[int]:
    """The processes that serve this port: those below the supervisor that listen on it."""
    port = int(url.rpartition(":")[2])
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if any(
            connection.laddr.port == port
            for connection in process.net_connections("tcp")
            if connection.status == "LISTEN"
        )
        and process.ppid() != os.getpid()
    ]


async def revoke_behind_its_back(connection: Connection, identity: IdentityServices, person: Person) -> None:
    """As if another process had done it and the message were lost."""
    claims = identity.key_ring.verify(str(person.tokens["access_token"]))
    await connection.execute(
        "INSERT INTO identity.revocations (kind, subject, expires_at) VALUES ('session', $1, 'infinity')",
        claims.sid,
    )


@pytest.mark.settings(APP_IDENTITY_REVOCATION_POLL="5")
async def test_a_process_that_stood_still_reads_before_it_trusts(
    person: Person, connection: Connection, identity: IdentityServices
) -> None:
    assert (await person.get("/v1/users/me")).status_code == 200
    await revoke_behind_its_back(connection, identity, person)
    assert (await person.get("/v1/users/me")).status_code == 200
    time.sleep(1.3)  # noqa: ASYNC251 - the whole process stands still
    # A waiting request becomes a task, which runs after the timers that are due.
    for _ in range(2):
        await asyncio.sleep(0)
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")


@pytest.mark.settings(APP_IDENTITY_REVOCATION_POLL="5")
async def test_a_process_that_hears_again_reads_before_it_trusts(
    person: Person, connection: Connection, identity: IdentityServices, resources: Resources, valkey: EmbeddedValkey
) -> None:
    assert (await person.get("/v1/users/me")).status_code == 200
    await asyncio.to_thread(valkey.stop)
    await eventually(lambda: not resources.bus.is_connected)
    await revoke_behind_its_back(connection, identity, person)
    await asyncio.to_thread(valkey.start)
    await eventually(lambda: resources.bus.is_connected)
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")


async def test_a_log_out_is_repeatable_and_works_with_an_expired_token(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    clock.advance(700)
    for _ in range(2):
        assert (await person.post("/v1/auth/logout")).status_code == 204
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    problem_of(answer, 401, "invalid_refresh_token")
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}):
        assert (await client.post("/v1/auth/logout", headers=headers)).status_code == 204


async def test_log_out_everywhere_may_keep_the_present_session(person: Person, log_in: LogIn) -> None:
    others = [await log_in(person) for _ in range(3)]
    assert (await person.post("/v1/auth/logout-all", json={"keep_current": True})).json() == {"revoked": 3}
    assert [(await each.get("/v1/users/me")).status_code for each in (person, *others)] == [200, 401, 401, 401]
    assert (await person.post("/v1/auth/logout-all")).json() == {"revoked": 1}
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")


async def test_a_session_of_somebody_else_cannot_be_ended(person: Person, client: httpx.AsyncClient) -> None:
    other = await register(client)
    (session,) = (await other.get("/v1/auth/sessions")).json()["items"]
    problem_of(await person.delete(f"/v1/auth/sessions/{session['id']}"), 404, "session_not_found")
    assert (await other.get("/v1/users/me")).status_code == 200
