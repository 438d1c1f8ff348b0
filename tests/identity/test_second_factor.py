"""The second factor: codes count once, near their time, and a user who lost the device has other codes."""

import asyncio
from collections import Counter
from xml.etree import ElementTree as ET

import httpx
import pyotp
import pytest

from app.identity.api import IdentityServices
from app.identity.schemas.second_factor import EnrolmentResponse
from app.identity.schemas.sessions import SecondFactorNeededResponse, SignedInResponse
from app.kernel.clock import Clock
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection

STEP = 30


class Phone:
    """An authenticator app whose clock is the application's."""

    def __init__(self, secret: str, clock: Clock) -> None:
        self._totp = pyotp.TOTP(secret)
        self._clock = clock

    def code(self, *, late: float = 0) -> str:
        return self._totp.at(int(self._clock.timestamp() - late))


async def enrol(person: Person, clock: ManualClock) -> tuple[Phone, list[str]]:
    clock.advance(STEP - clock.timestamp() % STEP)
    enrolment = body_of(await person.post("/v1/auth/mfa/totp"), EnrolmentResponse, 201)
    phone = Phone(enrolment["secret"], clock)
    answer = await person.post("/v1/auth/mfa/totp/activate", json={"code": phone.code()})
    assert answer.status_code == 200, answer.text
    clock.advance(STEP)
    return phone, answer.json()["recovery_codes"]


async def begin(client: httpx.AsyncClient, person: Person) -> str:
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    body = body_of(answer, SecondFactorNeededResponse)
    assert body["methods"] == ["totp", "recovery_code"]
    assert "set-cookie" not in answer.headers
    return str(body["mfa_token"])


async def finish(client: httpx.AsyncClient, mfa_token: str, code: str) -> httpx.Response:
    return await client.post("/v1/auth/mfa/verify", json={"mfa_token": mfa_token, "code": code})


async def test_a_seed_that_another_key_has_sealed_leaves_the_recovery_codes(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    phone, recovery_codes = await enrol(person, clock)
    await connection.execute("UPDATE identity.totp_factors SET secret_sealed = decode(repeat('00', 60), 'hex')")
    mfa_token = await begin(client, person)
    problem_of(await finish(client, mfa_token, phone.code()), 401, "invalid_code")
    body_of(await finish(client, mfa_token, recovery_codes[0]), SignedInResponse)


async def test_enrolment(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    answer = await person.post("/v1/auth/mfa/totp")
    enrolment = body_of(answer, EnrolmentResponse, 201)
    assert answer.headers["cache-control"] == "no-store"
    uri = pyotp.parse_uri(enrolment["otpauth_uri"])
    assert (uri.secret, uri.name, uri.issuer) == (enrolment["secret"], person.email, "Onehop")
    assert ET.fromstring(enrolment["qr_svg"]).tag.endswith("svg")  # noqa: S314 - our own drawing
    # It counts from its first code on: until then log-in asks for nothing, and another seed takes its place.
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    body_of(login, SignedInResponse)
    again = (await person.post("/v1/auth/mfa/totp")).json()
    assert again["secret"] != enrolment["secret"]
    old = {"code": Phone(enrolment["secret"], clock).code()}
    problem_of(await person.post("/v1/auth/mfa/totp/activate", json=old), 401, "invalid_code")
    new = {"code": Phone(again["secret"], clock).code()}
    codes = (await person.post("/v1/auth/mfa/totp/activate", json=new)).json()["recovery_codes"]
    assert len(set(codes)) == 10
    assert all(len(code.replace("-", "")) == 24 for code in codes)
    problem_of(await person.post("/v1/auth/mfa/totp"), 409, "second_factor_active")
    problem_of(await person.post("/v1/auth/mfa/totp/activate", json=new), 409, "second_factor_missing")
    assert (await person.get("/v1/auth/mfa")).json() == {"totp_enabled": True, "recovery_codes_left": 10}


async def test_login_with_a_code(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    phone, _ = await enrol(person, clock)
    mfa_token = await begin(client, person)
    problem_of(await client.get("/v1/users/me", headers={"Authorization": f"Bearer {mfa_token}"}), 401, "invalid_token")
    answer = await finish(client, mfa_token, phone.code())
    body_of(answer, SignedInResponse)
    assert "onehop_device=" in answer.headers["set-cookie"]
    problem_of(await finish(client, await begin(client, person), phone.code()), 401, "invalid_code")


async def test_a_code_of_the_activation_is_used_up(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    phone, _ = await enrol(person, clock)
    problem_of(await finish(client, await begin(client, person), phone.code(late=STEP)), 401, "invalid_code")


@pytest.mark.settings(APP_DATABASE_LOCK_TIMEOUT="0.02")
async def test_a_code_that_nobody_could_judge_is_no_attempt(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    phone, _ = await enrol(person, clock)
    mfa_token = await begin(client, person)
    async with connection.transaction():
        await connection.execute("SELECT FROM identity.totp_factors FOR UPDATE")
        for _ in range(6):
            problem_of(await finish(client, mfa_token, phone.code()), 503, "database_unavailable")
    body_of(await finish(client, mfa_token, phone.code()), SignedInResponse)


@pytest.mark.parametrize(("late", "status"), [(-2, 401), (-1, 200), (0, 200), (1, 200), (2, 401)])
async def test_a_clock_may_differ_by_one_step(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, late: int, status: int
) -> None:
    phone, _ = await enrol(person, clock)
    clock.advance(10 * STEP)
    answer = await finish(client, await begin(client, person), phone.code(late=late * STEP))
    assert answer.status_code == status


async def test_of_parallel_uses_of_one_code_one_counts(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    phone, codes = await enrol(person, clock)
    before = await connection.fetchval("SELECT count(*) FROM identity.sessions")
    for code in (phone.code(), codes[0]):
        tokens = [await begin(client, person) for _ in range(4)]
        answers = await asyncio.gather(*(finish(client, token, code) for token in tokens))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions") == before + 2


async def test_a_recovery_code_counts_once_however_it_is_typed(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    _, codes = await enrol(person, clock)
    typed = f" {codes[3].upper().replace('-', '')} "
    assert (await finish(client, await begin(client, person), typed)).status_code == 200
    problem_of(await finish(client, await begin(client, person), codes[3]), 401, "invalid_code")
    assert (await person.get("/v1/auth/mfa")).json()["recovery_codes_left"] == 9
    renewed = await person.post("/v1/auth/mfa/recovery-codes", json={"current_password": PASSWORD})
    assert len(set(renewed.json()["recovery_codes"]) - set(codes)) == 10
    problem_of(await finish(client, await begin(client, person), codes[4]), 401, "invalid_code")


async def test_a_code_counts_as_apps_show_it(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    """Each form is one try, at the right one too: of ten wrong ones the account would be locked."""
    secret = (await person.post("/v1/auth/mfa/totp")).json()["secret"]
    phone = Phone(secret, clock)
    code = phone.code()
    answer = await person.post("/v1/auth/mfa/totp/activate", json={"code": f" {code[:3]} {code[3:]}\n"})
    assert answer.status_code == 200, answer.text
    wide = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))
    for typed in (
        "{0} {1}",
        "{0}-{1}",
        " {0}{1} ",
        "{0}\u00a0{1}",
        "{0}\u2011{1}",
        "{0}\u2212{1}",
        "{0}\u200b{1}\ufeff",
        "{0}  -  {1}",
        "{0}{1}",
    ):
        clock.advance(STEP)
        code = phone.code()
        body_of(await finish(client, await begin(client, person), typed.format(code[:3], code[3:])), SignedInResponse)
    clock.advance(STEP)
    body_of(await finish(client, await begin(client, person), phone.code().translate(wide)), SignedInResponse)
    # The same code in another form is the same code.
    problem_of(await finish(client, await begin(client, person), phone.code()), 401, "invalid_code")


async def test_guessing_codes_is_braked(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    phone, codes = await enrol(person, clock)
    wrong = "000000" if phone.code() != "000000" else "000001"
    mfa_token = await begin(client, person)
    answers = await asyncio.gather(*(finish(client, mfa_token, wrong) for _ in range(20)))
    statuses = Counter(answer.status_code for answer in answers)
    # Where the machine takes longer than the first pauses, another attempt or two are looked at.
    assert 5 <= statuses[401] <= 7
    assert statuses[401] + statuses[429] == 20
    # A log-in anew gives no attempts back.
    refused = await finish(client, await begin(client, person), wrong)
    while int(refused.headers.get("retry-after", "0")) < 8:
        refused = await finish(client, await begin(client, person), wrong)
    problem_of(await finish(client, await begin(client, person), phone.code()), 429, "too_many_attempts")
    # 120 bits cannot be guessed, so recovery codes are not held up by an attacker who guesses six digits.
    body_of(await finish(client, await begin(client, person), codes[0]), SignedInResponse)


async def test_the_half_log_in_ends(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    phone, _ = await enrol(person, clock)
    late = await begin(client, person)
    clock.advance(600)
    problem_of(await finish(client, late, phone.code()), 401, "invalid_mfa_token")
    for wrong in ("x", "00" * 40, late[:-2], late[:-2] + "00", person.tokens["access_token"]):
        problem_of(await finish(client, wrong, phone.code()), 401, "invalid_mfa_token")
    stale = await begin(client, person)
    change = {"current_password": PASSWORD, "new_password": "a new horse 2026"}
    refreshed = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    headers = {"Authorization": f"Bearer {refreshed.json()['access_token']}"}
    assert (await client.post("/v1/auth/password/change", json=change, headers=headers)).status_code == 200
    problem_of(await finish(client, stale, phone.code()), 401, "invalid_mfa_token")


async def test_turning_it_off_needs_the_password(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    await enrol(person, clock)
    wrong = {"current_password": "not it at all"}
    for method, path in (("DELETE", "/v1/auth/mfa/totp"), ("POST", "/v1/auth/mfa/recovery-codes")):
        problem_of(await person.request(method, path, json=wrong), 403, "invalid_current_password")
    right = {"current_password": PASSWORD}
    assert (await person.request("DELETE", "/v1/auth/mfa/totp", json=right)).status_code == 204
    problem_of(await person.request("DELETE", "/v1/auth/mfa/totp", json=right), 409, "second_factor_missing")
    problem_of(await person.post("/v1/auth/mfa/recovery-codes", json=right), 409, "second_factor_missing")
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    body_of(login, SignedInResponse)
    tables = ("identity.totp_factors", "identity.recovery_codes")
    assert [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables] == [0, 0]  # noqa: S608


async def test_the_token_endpoint_does_not_go_around_it(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    await enrol(person, clock)
    form = {"grant_type": "password", "username": person.email, "password": PASSWORD}
    answer = await client.post("/v1/auth/token", data=form)
    assert (answer.status_code, answer.json()["error"]) == (400, "mfa_required")
