"""Strangers cannot keep an owner from the account by asking for mail, nor by the failures of a whole network."""

import httpx
import pytest

from app.identity.api import IdentityServices
from app.identity.service.tokens import hash_secret
from tests.fixtures.answers import problem_of
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.identity.conftest import Mailbox

COOKIE = "onehop_device"
RESET = "Set a new password"
NEW = "a new horse 2026"


async def cookie_of(client: httpx.AsyncClient, person: Person) -> str:
    """What a log-in leaves on the device; the client forgets it again."""
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    cookie: str = answer.cookies[COOKIE]
    client.cookies.clear()
    return cookie


async def ask(client: httpx.AsyncClient, path: str, email: str) -> None:
    answer = await client.post(f"/v1/auth/{path}", json={"email": email})
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})


@pytest.mark.settings(APP_MAIL_RECIPIENT_HOURLY="2")
async def test_the_requests_of_strangers_use_up_nothing_of_the_owner(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    person = await make_person()
    cookie = await cookie_of(client, person)
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now()")

    async def until_done() -> None:
        async def is_done() -> bool:
            return bool(await connection.fetchval("SELECT count(*) = 0 FROM jobs.jobs WHERE state < 2"))

        await eventually(is_done)

    for _ in range(12):
        await ask(client, "email/resend", person.email)
    # One in the half hour that a link lives; what comes behind it is withheld.
    await ask(client, "password/forgot", person.email)
    first = await mailbox.letter(person.email, RESET)
    for _ in range(12):
        await ask(client, "password/forgot", person.email)
    await until_done()
    stored = "SELECT token_hash FROM identity.one_time_tokens WHERE purpose = 'reset_password'"
    assert await connection.fetchval(stored) == hash_secret(first.token)
    client.cookies.set(COOKIE, cookie)
    await ask(client, "password/forgot", person.email)
    second = await mailbox.letter(person.email, RESET, number=2)
    client.cookies.clear()
    answer = await client.post("/v1/auth/password/reset", json={"token": second.token, "new_password": NEW})
    assert answer.status_code == 204
    assert [letter.subject for letter in mailbox.letters(person.email)].count(RESET) == 2
    # A device of before the reset is a stranger's, whose link of this half hour is used up.
    client.cookies.set(COOKIE, cookie)
    await ask(client, "password/forgot", person.email)
    await until_done()
    assert [letter.subject for letter in mailbox.letters(person.email)].count(RESET) == 2


@pytest.mark.settings(
    APP_IDENTITY_NETWORK_FAILURES="3", APP_IDENTITY_NETWORK_REGISTRATIONS="3", APP_HTTP_TRUSTED_PROXIES="127.0.0.1/32"
)
async def test_a_network_full_of_failures_slows_strangers_only(client: httpx.AsyncClient, person: Person) -> None:
    cookie = await cookie_of(client, person)
    office = {"X-Forwarded-For": "192.0.2.7"}
    right = {"email": person.email, "password": PASSWORD}
    for number in range(3):
        wrong = {"email": f"unknown{number}@example.com", "password": "not it at all"}
        problem_of(await client.post("/v1/auth/login", json=wrong, headers=office), 401, "invalid_credentials")
        body = {"email": f"unknown{number}@example.com"}
        assert (await client.post("/v1/auth/password/forgot", json=body, headers=office)).status_code == 202
    for path, body in (("login", right), ("password/forgot", {"email": person.email})):
        refused = await client.post(f"/v1/auth/{path}", json=body, headers=office)
        problem_of(refused, 429, "too_many_attempts")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # A neighbour in the same /24, and the owner's device, are served.
        neighbour = await client.post(f"/v1/auth/{path}", json=body, headers={"X-Forwarded-For": "192.0.2.8"})
        assert neighbour.status_code in (200, 202)
        client.cookies.clear()
        client.cookies.set(COOKIE, cookie)
        assert (await client.post(f"/v1/auth/{path}", json=body, headers=office)).status_code in (200, 202)
        client.cookies.clear()


@pytest.mark.settings(APP_IDENTITY_NETWORK_FAILURES="100")
async def test_strangers_share_an_address_and_then_a_network(identity: IdentityServices) -> None:
    throttle = identity.throttle
    one, two = (throttle.login_buckets("a@example.com", f"192.0.2.{number}", None)[-2:] for number in (1, 2))
    assert one[0].key != two[0].key
    assert one[1].key == two[1].key
    assert [(bucket.limit, bucket.window, bucket.longest_pause, bucket.is_sliding) for bucket in one] == [
        (100, 3600, 60, False),
        (400, 3600, 10, False),
    ]
    (own,) = throttle.login_buckets("a@example.com", "192.0.2.1", "device")
    assert own.key not in {bucket.key for bucket in (*one, *two)}
