"""How many codes of a second factor an attacker with the password can try, whatever cookies they have collected."""

from collections import Counter
from uuid import uuid4

import httpx
import pytest

from app.identity.api import IdentityServices
from app.identity.errors import TooManyAttempts
from app.identity.service.login_throttle import AttemptBucket
from app.kernel.errors import Unavailable
from app.kernel.ids import UserId, new_id
from tests.attacks.test_lockout import COOKIE, wrong_code
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, Person
from tests.identity.test_second_factor import STEP, begin, enrol, finish

# Right codes among a million: those of three time steps of six digits.
RIGHT_IN_A_MILLION = 3


async def test_cookies_of_before_the_factor_are_those_of_strangers(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    cookies = []
    for _ in range(3):
        login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
        cookies.append(login.cookies[COOKIE])
        client.cookies.clear()
    phone, _ = await enrol(person, clock)
    mfa_token = await begin(client, person)
    statuses: Counter[int] = Counter()
    for cookie in cookies:
        client.cookies.set(COOKIE, cookie)
        statuses.update([(await finish(client, mfa_token, wrong_code(phone))).status_code for _ in range(4)])
        client.cookies.clear()
    assert statuses[429] >= 1
    assert statuses[401] + statuses[429] == 12
    # For passwords, the devices are known as before.
    client.cookies.set(COOKIE, cookies[0])
    assert (await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})).is_success


async def test_a_factor_that_is_turned_off_and_on_again_knows_no_device(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    phone, _ = await enrol(person, clock)
    passed = await finish(client, await begin(client, person), phone.code())
    off = await person.request("DELETE", "/v1/auth/mfa/totp", json={"current_password": PASSWORD})
    assert off.status_code == 204
    client.cookies.clear()
    clock.advance(STEP)
    phone, _ = await enrol(person, clock)
    again = await finish(client, await begin(client, person), phone.code())
    known = [identity.devices.recognise(answer.cookies[COOKIE], person.email) for answer in (passed, again)]
    assert [(device.version, device.factor_epoch) for device in known if device] == [(1, 2), (1, 4)]


async def test_guesses_in_thirty_days(identity: IdentityServices) -> None:
    """As docs/security.md says: 3 in 10,000 for strangers, and as much for the devices that are known."""
    throttle, user_id = identity.throttle, UserId(new_id())
    judged: Counter[str] = Counter()
    for number in range(40):
        for kind, ip, device in (("stranger", f"10.0.{number}.1", None), ("known", "10.0.0.1", f"device{number}")):
            buckets = throttle.code_buckets(user_id, ip, device, is_totp=True)
            for _ in range(4):
                try:
                    await throttle.reserve(buckets)
                except TooManyAttempts:
                    break
                judged[kind] += 1
    assert judged == {"stranger": 100, "known": 100}
    # In a million: 300 are 3 in 10,000.
    assert judged["stranger"] * RIGHT_IN_A_MILLION == 300
    assert judged.total() * RIGHT_IN_A_MILLION == 600


async def test_a_success_of_one_device_gives_another_nothing(identity: IdentityServices) -> None:
    throttle, user_id = identity.throttle, UserId(new_id())
    one, two = (throttle.code_buckets(user_id, "10.0.0.1", device, is_totp=True) for device in ("one", "two"))
    assert one[1] == two[1]
    for _ in range(99):
        await throttle.reserve(two[1:])
    await throttle.reserve(one)
    await throttle.release(one)
    await throttle.reserve(two[1:])
    with pytest.raises(TooManyAttempts):
        await throttle.reserve(one)


async def test_an_attempt_that_was_not_judged_is_given_back_where_it_was_counted(identity: IdentityServices) -> None:
    known, stranger, more = (AttemptBucket(f"tests:{uuid4()}", 1, 3600, 0, 0, is_personal=False) for _ in range(3))

    async def lose() -> None:
        async with identity.throttle.attempt([known]) as attempt:
            await attempt.move([stranger])
            await attempt.add([more])
            raise Unavailable

    for _ in range(2):
        with pytest.raises(Unavailable):
            await lose()
    # Each has room for one attempt again, and for no second one.
    for bucket in (known, stranger, more):
        await identity.throttle.reserve([bucket])
        with pytest.raises(TooManyAttempts):
            await identity.throttle.reserve([bucket])
