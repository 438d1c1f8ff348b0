"""Name servers that say nothing: no request waits for one, and no user's names keep those of others waiting."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.jobs.handlers.webhook_deliver import MOST_DELIVERIES_OF_A_USER
from app.jobs.records import QUEUES
from app.jobs.service import resolving
from app.jobs.service.reachability import NamesUnavailable, Reachability
from app.jobs.service.resolving import MOST_LOOKUPS, MOST_LOOKUPS_OF_A_USER, LookupsBusy, Resolver, owner_var
from app.kernel.ids import UserId, new_id
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class NameServers:
    """The system's look-up, which says nothing of names in `.slow` until `wake` is set."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        self.asked.append(name)
        if name.endswith(".slow"):
            self.wake.wait(60)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        if name.endswith(".quick"):
            host = "127.0.0.1"
        return _getaddrinfo(host, *args, **options)


_getaddrinfo = socket.getaddrinfo


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    servers = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", servers.getaddrinfo)
    yield servers
    servers.wake.set()


async def test_registering_an_endpoint_asks_no_name_server(person: Person, names: NameServers) -> None:
    """Found by running it: 64 loops of one user made 93 % of everybody's writes 503."""
    names.asked.clear()
    url = "https://hooks.example.slow/x"
    made = await person.post("/v1/webhooks/endpoints", json={"url": url, "event_types": ["*"]})
    assert made.status_code == 201
    changed = await person.patch(f"/v1/webhooks/endpoints/{made.json()['id']}", json={"url": f"{url}/y"})
    assert (changed.status_code, changed.json()["url"]) == (200, f"{url}/y")
    tested = await person.post(f"/v1/webhooks/endpoints/{made.json()['id']}/test")
    assert tested.status_code == 202
    assert [name for name in names.asked if name.endswith(".slow")] == []


async def test_one_users_lookups_leave_threads_for_others(names: NameServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "_SECONDS", 0.2)
    resolver = Resolver(Reachability())
    slow, other = UserId(new_id()), UserId(new_id())

    async def look_up(owner: UserId, name: str) -> Any:
        owner_var.set(owner)
        return await resolver.resolve(name, 443)

    async def look_up_slowly(number: int) -> str:
        try:
            await look_up(slow, f"{number}.slow")
        except (LookupsBusy, NamesUnavailable) as error:
            return type(error).__name__
        return "found"

    outcomes = await asyncio.gather(*(look_up_slowly(number) for number in range(50)))
    assert outcomes.count("NamesUnavailable") == MOST_LOOKUPS_OF_A_USER
    assert outcomes.count("LookupsBusy") == 50 - MOST_LOOKUPS_OF_A_USER
    # The threads are still held, though no request waits for them any more.
    with pytest.raises(LookupsBusy):
        await look_up(slow, "a.quick")
    (found,) = await look_up(other, "a.quick")
    assert (found["hostname"], found["host"], found["port"]) == ("a.quick", "127.0.0.1", 443)
    names.wake.set()

    async def is_free() -> bool:
        try:
            return bool(await look_up(slow, "a.quick"))
        except LookupsBusy:
            return False

    await eventually(is_free)
    await resolver.close()


def test_one_user_never_holds_more_than_a_fair_part() -> None:
    assert MOST_LOOKUPS_OF_A_USER * 30 <= MOST_LOOKUPS
    assert QUEUES["webhooks"].ceiling == 3 * MOST_DELIVERIES_OF_A_USER


@LOCAL
async def test_deliveries_of_others_go_on_beside_names_that_are_never_answered(
    make_person: MakePerson, receiver: Receiver, settings: Settings, connection: Connection, names: NameServers
) -> None:
    attacker, other = await make_person(), await make_person()
    for number in range(10):
        endpoint = await register(attacker, f"http://{number}.example.slow/")
        for _ in range(4):
            await attacker.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
    port = receiver.url.split(":")[2]
    endpoint = await register(other, f"http://hooks.example.quick:{port}")
    async with open_worker(settings):
        await eventually(lambda: sum(name.endswith(".slow") for name in names.asked) >= MOST_LOOKUPS_OF_A_USER)
        for number in range(1, 6):
            await other.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
            await eventually(lambda number=number: len(receiver.requests) == number)  # type: ignore[misc]
        assert sum(name.endswith(".slow") for name in names.asked) == MOST_LOOKUPS_OF_A_USER
        names.wake.set()
    # What waited for a look-up has used no attempt.
    most = await connection.fetchval("SELECT max(attempts) FROM jobs.webhook_deliveries WHERE state = 'pending'")
    assert most <= 1
