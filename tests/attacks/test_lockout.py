"""Throttles hold up guessers, and leave a way in to the owner."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import pytest

from app.identity.api import IdentityServices
from app.kernel.clock import SystemClock
from app.kernel.ids import UserId
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_second_factor import STEP, Phone, begin, enrol, finish

PROXY = pytest.mark.settings(APP_HTTP_TRUSTED_PROXIES="127.0.0.1/32")
COOKIE = "onehop_device"
NEW = "a new horse 2026"

Guess = Callable[[int], Awaitable[list[int]]]


def wrong_code(phone: Phone) -> str:
    return "000000" if phone.code() != "000000" else "000001"


async def guess(client: httpx.AsyncClient, person: Person, phone: Phone, count: int, **headers: str) -> list[int]:
    """Statuses of so many wrong codes after the right password."""
    client.cookies.clear()
    statuses = []
    for _ in range(count):
        body = {"mfa_token": await begin(client, person), "code": wrong_code(phone)}
        statuses.append((await client.post("/v1/auth/mfa/verify", json=body, headers=headers)).status_code)
    return statuses


async def test_a_known_device_is_not_locked_out_by_a_person_who_knows_the_password(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    phone, _ = await enrol(person, clock)
    first = await finish(client, await begin(client, person), phone.code())
    cookie = first.cookies[COOKIE]
    clock.advance(STEP)
    assert Counter(await guess(client, person, phone, 12))[429] >= 1
    client.cookies.set(COOKIE, cookie)
    assert (await finish(client, await begin(client, person), phone.code())).status_code == 200


async def test_recovery_codes_have_a_brake_of_their_own(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    phone, codes = await enrol(person, clock)
    assert Counter(await guess(client, person, phone, 12))[429] >= 1
    assert (await finish(client, await begin(client, person), codes[0])).status_code == 200


@PROXY
async def test_another_network_is_not_locked_out_at_once(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    phone, _ = await enrol(person, clock)
    assert Counter(await guess(client, person, phone, 12, **{"X-Forwarded-For": "203.0.113.7"}))[429] >= 1
    body = {"mfa_token": await begin(client, person), "code": phone.code()}
    answer = await client.post("/v1/auth/mfa/verify", json=body, headers={"X-Forwarded-For": "198.51.100.7"})
    assert answer.status_code == 200


@PROXY
async def test_strangers_have_a_hundred_codes_between_them(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    phone, codes = await enrol(person, clock)
    first = await finish(client, await begin(client, person), phone.code())
    cookie = first.cookies[COOKIE]
    clock.advance(STEP)
    client.cookies.clear()
    mfa_token = await begin(client, person)
    body = {"mfa_token": mfa_token, "code": wrong_code(phone)}
    statuses: Counter[int] = Counter()
    for network in range(30):
        headers = {"X-Forwarded-For": f"198.51.{network}.7"}
        answers = await asyncio.gather(
            *(client.post("/v1/auth/mfa/verify", json=body, headers=headers) for _ in range(4))
        )
        statuses.update(answer.status_code for answer in answers)
    assert statuses == {401: 100, 429: 20}
    right = {"mfa_token": await begin(client, person), "code": phone.code()}
    answer = await client.post("/v1/auth/mfa/verify", json=right, headers={"X-Forwarded-For": "192.0.2.7"})
    problem_of(answer, 429, "too_many_attempts")
    # The owner comes in by a recovery code, from a device that is known, and everywhere with a new password.
    assert (await finish(client, mfa_token, codes[0])).status_code == 200
    client.cookies.set(COOKIE, cookie)
    assert (await finish(client, await begin(client, person), phone.code())).status_code == 200
    clock.advance(STEP)
    client.cookies.clear()
    change = {"current_password": PASSWORD, "new_password": NEW}
    assert (await person.post("/v1/auth/password/change", json=change)).status_code == 200
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": NEW})
    right = {"mfa_token": login.json()["mfa_token"], "code": phone.code()}
    answer = await client.post("/v1/auth/mfa/verify", json=right, headers={"X-Forwarded-For": "192.0.2.7"})
    assert answer.status_code == 200


async def test_the_owner_is_warned_of_guesses_once(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    person = await make_person()
    secret = (await person.post("/v1/auth/mfa/totp")).json()["secret"]
    phone = Phone(secret, SystemClock())
    assert (await person.post("/v1/auth/mfa/totp/activate", json={"code": phone.code()})).status_code == 200
    statuses = Counter(await guess(client, person, phone, 14))
    assert statuses[429] >= 2
    letter = await mailbox.letter(person.email, "Wrong codes for your second factor")
    assert "others may know your password" in letter.text
    events = await connection.fetch(
        "SELECT action, count(*) FROM identity.security_events WHERE action LIKE 'second_factor%' GROUP BY 1"
    )
    assert {row["action"]: row["count"] for row in events} == {
        "second_factor_failed": statuses[401],
        "second_factor_guessed": 1,
    }


async def test_half_a_log_in_of_before_a_new_password_uses_up_nothing(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    phone, _ = await enrol(person, clock)
    client.cookies.clear()
    old = await begin(client, person)
    change = {"current_password": PASSWORD, "new_password": NEW}
    assert (await person.post("/v1/auth/password/change", json=change)).status_code == 200
    for _ in range(12):
        problem_of(await finish(client, old, wrong_code(phone)), 401, "invalid_mfa_token")
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": NEW})
    assert (await finish(client, login.json()["mfa_token"], phone.code())).status_code == 200


async def test_a_thief_of_a_token_brakes_no_other_session(person: Person, log_in: LogIn) -> None:
    owner = await log_in(person)
    wrong = {"current_password": "not it at all", "new_password": NEW}
    answers = await asyncio.gather(*(person.post("/v1/auth/password/change", json=wrong) for _ in range(8)))
    assert Counter(answer.status_code for answer in answers) == {403: 5, 429: 3}
    right = {"current_password": PASSWORD, "new_password": NEW}
    assert (await owner.post("/v1/auth/password/change", json=right)).status_code == 200


async def test_a_device_of_before_a_new_password_is_a_stranger(
    client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    cookie = login.cookies[COOKIE]
    change = {"current_password": PASSWORD, "new_password": NEW}
    assert (await person.post("/v1/auth/password/change", json=change)).status_code == 200
    # The bucket that all strangers share is used up by others.
    throttle = identity.throttle
    for _ in range(20):
        for bucket in throttle.login_buckets(person.email, "192.0.2.1", None)[1:2]:
            await throttle.reserve([bucket])
    client.cookies.set(COOKIE, cookie)
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": NEW})
    problem_of(answer, 429, "too_many_attempts")


async def test_who_resets_from_the_mailbox_is_known_from_then_on(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, identity: IdentityServices
) -> None:
    person = await make_person()
    assert (await client.post("/v1/auth/password/forgot", json={"email": person.email})).status_code == 202
    token = (await mailbox.letter(person.email, "Set a new password")).token
    body = {"token": token, "new_password": NEW}
    answer = await client.post("/v1/auth/password/reset", json=body)
    assert answer.status_code == 204
    cookie = answer.cookies[COOKIE]
    throttle = identity.throttle
    for _ in range(20):
        await throttle.reserve([throttle.login_buckets(person.email, "192.0.2.1", None)[1]])
    client.cookies.clear()
    login = {"email": person.email, "password": NEW}
    problem_of(await client.post("/v1/auth/login", json=login), 429, "too_many_attempts")
    client.cookies.set(COOKIE, cookie)
    assert (await client.post("/v1/auth/login", json=login)).status_code == 200


async def test_a_known_device_has_a_hundred_codes_too(identity: IdentityServices, person: Person) -> None:
    """A code is right with a probability of 3 in a million, so of 3,000 stolen cookies with passwords one opens."""
    buckets = identity.throttle.code_buckets(UserId(person.id), "192.0.2.1", "device", is_totp=True)
    assert [(bucket.limit, bucket.window, bucket.longest_pause) for bucket in buckets] == [
        (5, 86_400, 900),
        (100, 30 * 86_400, 0),
    ]
