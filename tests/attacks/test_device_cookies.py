"""The cookie of a device that one account knows is worth nothing for the next account of its address."""

from typing import Any

import httpx
import pytest

from app.identity.api import IdentityServices
from app.kernel.resources import Resources
from tests.fixtures.answers import problem_of
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.identity.conftest import Mailbox

COOKIE = "onehop_device"
VICTIM = "victim@example.com"


async def cookie_of(client: httpx.AsyncClient, person: Person) -> str:
    """What a log-in leaves on the person's device."""
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    assert answer.status_code == 200
    client.cookies.clear()
    return answer.cookies[COOKIE]


@pytest.fixture
async def left(client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox) -> str:
    """The cookie of an account that had the victim's address before the victim registered, at the same version."""
    stranger = await make_person(email=VICTIM)
    cookie = await cookie_of(client, stranger)
    body = {"new_email": "stranger@example.com", "current_password": PASSWORD}
    assert (await stranger.post("/v1/auth/email/change", json=body)).status_code == 202
    letter = await mailbox.letter("stranger@example.com", "Confirm your new e-mail address")
    assert (await client.post("/v1/auth/email/confirm", json={"token": letter.token})).status_code == 200
    return cookie


async def guess(client: httpx.AsyncClient, cookie: str) -> int:
    client.cookies.clear()
    client.cookies.set(COOKIE, cookie)
    answer = await client.post("/v1/auth/login", json={"email": VICTIM, "password": "wrong password"})
    client.cookies.clear()
    return answer.status_code


async def test_it_spares_no_guess(client: httpx.AsyncClient, make_person: MakePerson, left: str) -> None:
    own = await cookie_of(client, await make_person(email=VICTIM))
    for _ in range(5):
        answer = await client.post("/v1/auth/login", json={"email": VICTIM, "password": "wrong password"})
        problem_of(answer, 401, "invalid_credentials")
    assert [await guess(client, cookie) for cookie in (left, own)] == [429, 401]


async def test_it_uses_up_no_code_of_known_devices(
    client: httpx.AsyncClient, make_person: MakePerson, left: str, identity: IdentityServices, resources: Resources
) -> None:
    await make_person(email=VICTIM)
    for _ in range(3):
        client.cookies.set(COOKIE, left)
        answer = await client.post("/v1/auth/code/login", json={"email": VICTIM, "code": "000000"})
        problem_of(answer, 401, "invalid_code")
        client.cookies.clear()
    known, strangers = (
        identity.throttle.email_code_buckets(VICTIM, None, is_known=is_known)[0] for is_known in (True, False)
    )

    async def used(key: str) -> Any:
        return await resources.redis.call(lambda client: client.hget(key, "n"))  # type: ignore[arg-type, return-value]  # redis-py types both of its clients

    assert [int(await used(bucket.key) or 0) for bucket in (known, strangers)] == [0, 3]


async def test_mail_that_it_asks_for_is_that_of_strangers(
    client: httpx.AsyncClient, make_person: MakePerson, left: str, mailbox: Mailbox, connection: Any
) -> None:
    person: Person = await make_person(email=VICTIM)
    client.cookies.set(COOKIE, left)
    assert (await client.post("/v1/auth/password/forgot", json={"email": person.email})).status_code == 202
    await mailbox.letter(VICTIM, "Set a new password")
    purposes = await connection.fetch("SELECT purpose FROM jobs.mail_sends WHERE purpose LIKE '%reset'")
    assert [row["purpose"] for row in purposes] == ["reset"]
