"""A clock that is set brings nothing back to life: not that of a machine, and not that of the database."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from app.identity.api import IdentityServices
from app.kernel.clock import SteadyClock, elapsed
from app.kernel.resources import Resources
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

STEP = 20 * 60.0
# A function of the same name that is found first moves the clock for every statement that asks it.
MOVABLE_CLOCK = """
CREATE SCHEMA moved;
CREATE TABLE moved.step (seconds float8 NOT NULL);
INSERT INTO moved.step VALUES (0);
CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
$$ SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM moved.step)) $$;
"""

SetClock = Callable[[float], Awaitable[None]]


@pytest.fixture
async def set_database_clock(connection: Connection) -> SetClock:
    """Makes a coroutine that moves the clock of the test's database; a test names this fixture before `client`."""
    await connection.execute(MOVABLE_CLOCK)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET search_path = moved, pg_catalog, public')

    async def move(seconds: float) -> None:
        await connection.execute("UPDATE moved.step SET seconds = $1", seconds)

    return move


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revocations are forgotten with each read instead of every five minutes."""
    monkeypatch.setattr("app.identity.service.revocation._FORGET_SECONDS", -1.0)


async def reads(identity: IdentityServices, count: int = 3) -> None:
    """Returns once the process has read the revocations so many times."""
    wanted = identity.feed._reads_done + count
    await eventually(lambda: identity.feed._reads_done >= wanted, within=30)


async def revoked(client: httpx.AsyncClient, make_person: MakePerson, admin: Person) -> list[tuple[Person, str]]:
    """People with the code that their tokens are refused with."""
    gone, banned, demoted = [await make_person() for _ in range(3)]
    for person in (gone, banned, demoted):
        assert (await person.get("/v1/users/me")).status_code == 200
    assert (await gone.post("/v1/auth/logout")).status_code == 204
    assert (await admin.post(f"/v1/admin/users/{banned.id}/ban")).status_code == 204
    assert (await admin.patch(f"/v1/admin/users/{demoted.id}", json={"role": "admin"})).status_code == 200
    return [(gone, "token_revoked"), (banned, "token_revoked"), (demoted, "token_revoked")]


@pytest.mark.parametrize("step", [STEP, -STEP])
async def test_a_step_of_the_clock_of_a_process_revives_no_token(
    step: float,
    forgetful: None,
    clock: ManualClock,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    admin: Person,
    identity: IdentityServices,
) -> None:
    people = await revoked(client, make_person, admin)
    clock.advance(step)
    await reads(identity)
    clock.advance(-step)
    await reads(identity)
    for person, code in people:
        problem_of(await person.get("/v1/users/me"), 401, code)
        problem_of(await person.patch("/v1/users/me", json={"bio": "x"}), 401, code)
    assert (await admin.get("/v1/users/me")).status_code == 200


async def test_what_is_revoked_while_the_clock_is_behind_stays_revoked(
    forgetful: None,
    clock: ManualClock,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    admin: Person,
    identity: IdentityServices,
) -> None:
    clock.advance(-STEP)
    people = await revoked(client, make_person, admin)
    await reads(identity)
    for person, code in people:
        problem_of(await person.get("/v1/users/me"), 401, code)


@pytest.mark.parametrize("steps", [(STEP, 0.0), (STEP, -STEP), (-STEP, 0.0)])
async def test_a_step_of_the_clock_of_the_database_revives_no_token(
    steps: tuple[float, float],
    set_database_clock: SetClock,
    forgetful: None,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    admin: Person,
    identity: IdentityServices,
) -> None:
    people = await revoked(client, make_person, admin)
    for seconds in steps:
        await set_database_clock(seconds)
        await reads(identity)
        for person, _ in people:
            assert (await person.get("/v1/users/me")).status_code == 401
    await set_database_clock(0)
    await reads(identity)
    for person, code in people:
        problem_of(await person.get("/v1/users/me"), 401, code)
    assert (await admin.get("/v1/users/me")).status_code == 200


@pytest.fixture
def wall_clock_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of the process shows a time that is an hour ahead."""
    monkeypatch.setattr("app.kernel.clock.time", lambda: time.time() + 3600)


async def test_the_clock_of_a_process_is_that_of_the_database(
    wall_clock_ahead: None, client: httpx.AsyncClient, resources: Resources, person: Person
) -> None:
    assert isinstance(resources.clock, SteadyClock)
    assert abs((resources.clock.now() - datetime.now(UTC)).total_seconds()) < 600
    introspected = await person.post("/v1/auth/introspect", data={"token": person.tokens["access_token"]})
    assert abs(introspected.json()["iat"] - time.time()) < 600


def test_a_steady_clock_follows_the_database_and_not_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    monkeypatch.setattr("app.kernel.clock.time", lambda: 0.0)
    assert abs((clock.now() - datetime.now(UTC)).total_seconds()) < 600
    told = datetime.now(UTC) + timedelta(hours=1)
    now = elapsed()
    clock.learn(told, now - 0.2, now - 0.1)

    def at_now() -> tuple[float, float]:
        """What the clock said at `now`, at the least and at the most: between two looks at clocks time goes on."""
        before = elapsed()
        shown = clock.timestamp()
        return shown - (elapsed() - now), shown - (before - now)

    least, most = at_now()
    assert most >= told.timestamp() + 0.1 - 1e-5
    assert least <= told.timestamp() + 0.2 + 1e-5
    # An offset within the bounds of an answer is kept.
    clock.learn(told + timedelta(seconds=1), now, now + 2)
    later_least, later_most = at_now()
    assert later_least <= most + 1e-5
    assert later_most >= least - 1e-5
