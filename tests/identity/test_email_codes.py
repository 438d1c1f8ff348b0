"""Log-in with a code that is sent by e-mail: what it opens, what it proves, and how often it may be guessed."""

import asyncio
from collections import Counter

import httpx
import pyotp
import pytest

from app.identity.queries.one_time_tokens import TRY_LOGIN_CODE
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Recorder
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_login import without_request_id

SUBJECT = "Your code to log in"


async def code_of(client: httpx.AsyncClient, mailbox: Mailbox, email: str, *, number: int = 1) -> str:
    answer = await client.post("/v1/auth/code", json={"email": email})
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    return (await mailbox.letter(email, SUBJECT, number=number)).code


async def log_in_by(client: httpx.AsyncClient, email: str, code: str, **fields: str) -> httpx.Response:
    answer = await client.post("/v1/auth/code/login", json={"email": email, "code": code} | fields)
    client.cookies.clear()
    return answer


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


@pytest.fixture
async def proven(make_person: MakePerson, connection: Connection) -> Person:
    """A user whose address is verified."""
    person = await make_person()
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", person.id)
    return person


async def test_a_code_opens_one_session(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox, connection: Connection
) -> None:
    code = await code_of(client, mailbox, proven.email)
    typed = f" {code[:3]} {code[3:]}"
    answer = await log_in_by(client, f" {proven.email.upper()}", typed, device_name="phone")
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["id"] == str(proven.id)
    headers = {"Authorization": f"Bearer {answer.json()['tokens']['access_token']}"}
    session = (await client.get("/v1/auth/session", headers=headers)).json()
    assert session["methods"] == ["email"]
    row = await connection.fetchrow("SELECT data FROM identity.security_events WHERE action = 'logged_in'")
    assert row is not None
    assert row["data"] == '{"methods": ["email"]}'
    problem_of(await log_in_by(client, proven.email, code), 401, "invalid_code")
    # What was made before is kept, because the address was proven before.
    assert (await proven.get("/v1/users/me")).status_code == 200


async def test_a_code_can_open_a_session_of_a_cookie(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox
) -> None:
    code = await code_of(client, mailbox, proven.email)
    answer = await log_in_by(client, proven.email, code, transport="cookie")
    assert set(answer.json()) == {"user"}
    assert any(line.startswith("onehop=sc_") for line in answer.headers.get_list("set-cookie"))


async def test_only_the_newest_code_for_ten_minutes(
    clock: ManualClock, client: httpx.AsyncClient, proven: Person, mailbox: Mailbox
) -> None:
    first = await code_of(client, mailbox, proven.email)
    second = await code_of(client, mailbox, proven.email, number=2)
    problem_of(await log_in_by(client, proven.email, first), 401, "invalid_code")
    clock.advance(599)
    assert (await log_in_by(client, proven.email, second)).status_code == 200
    third = await code_of(client, mailbox, proven.email, number=3)
    clock.advance(601)
    problem_of(await log_in_by(client, proven.email, third), 401, "invalid_code")


async def test_parallel_log_ins_with_one_code_open_one_session(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox, connection: Connection
) -> None:
    code = await code_of(client, mailbox, proven.email)
    answers = await asyncio.gather(*(log_in_by(client, proven.email, code) for _ in range(4)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE methods = '{email}'") == 1


async def test_five_tries_also_at_the_same_moment(client: httpx.AsyncClient, proven: Person, mailbox: Mailbox) -> None:
    code = await code_of(client, mailbox, proven.email)
    answers = await asyncio.gather(*(log_in_by(client, proven.email, wrong(code)) for _ in range(5)))
    for answer in answers:
        problem_of(answer, 401, "invalid_code")
    problem_of(await log_in_by(client, proven.email, code), 401, "invalid_code")
    another = await code_of(client, mailbox, proven.email, number=2)
    assert (await log_in_by(client, proven.email, another)).status_code == 200


async def test_strangers_do_not_use_up_the_tries_of_the_owner_s_device(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox
) -> None:
    login = await client.post("/v1/auth/login", json={"email": proven.email, "password": PASSWORD})
    device = {"Cookie": login.headers["set-cookie"].partition(";")[0]}
    client.cookies.clear()
    code = await code_of(client, mailbox, proven.email)
    for _ in range(5):
        await log_in_by(client, proven.email, wrong(code))
    problem_of(await log_in_by(client, proven.email, code), 401, "invalid_code")
    body = {"email": proven.email, "code": code}
    assert (await client.post("/v1/auth/code/login", json=body, headers=device)).status_code == 200


async def test_a_hundred_wrong_codes_close_the_way_to_strangers_only_until_a_reset(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox
) -> None:
    login = await client.post("/v1/auth/login", json={"email": proven.email, "password": PASSWORD})
    device = {"Cookie": login.headers["set-cookie"].partition(";")[0]}
    client.cookies.clear()
    statuses = Counter([(await log_in_by(client, proven.email, "000000")).status_code for _ in range(101)])
    assert statuses == {401: 100, 429: 1}
    code = await code_of(client, mailbox, proven.email)
    assert (await log_in_by(client, proven.email, code)).status_code == 429
    body = {"email": proven.email, "code": code}
    assert (await client.post("/v1/auth/code/login", json=body, headers=device)).status_code == 200
    client.cookies.clear()
    await client.post("/v1/auth/password/forgot", json={"email": proven.email})
    token = (await mailbox.letter(proven.email, "Set a new password")).token
    reset = {"token": token, "new_password": "a new horse 2026"}
    assert (await client.post("/v1/auth/password/reset", json=reset)).status_code == 204
    client.cookies.clear()
    code = await code_of(client, mailbox, proven.email, number=2)
    assert (await log_in_by(client, proven.email, code)).status_code == 200


async def test_known_and_unknown_addresses_are_answered_alike(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox, statements: Recorder, connection: Connection
) -> None:
    code = await code_of(client, mailbox, proven.email)
    jobs = await connection.fetchval("SELECT count(*) FROM jobs.jobs")
    asked = [await client.post("/v1/auth/code", json={"email": email}) for email in (proven.email, "no@example.com")]
    assert without_request_id(asked[0]) == without_request_id(asked[1])
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == jobs + 2
    labels, answers = [], []
    for email in (proven.email, "no@example.com"):
        with statements() as seen:
            answers.append(await log_in_by(client, email, wrong(code)))
        labels.append([statement.label for statement in seen])
    assert labels[0] == labels[1] == ["identity.login", "identity.try_code", "identity.failed_login"]
    assert without_request_id(answers[0]) == without_request_id(answers[1])
    problem_of(answers[0], 401, "invalid_code")
    assert "set_config('synchronous_commit', 'off', true)" in TRY_LOGIN_CODE
    assert mailbox.letters("no@example.com") == []


@pytest.mark.parametrize("change", ["version = version + 1", "status = 'banned'"])
async def test_a_code_ends_with_what_the_account_was(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox, connection: Connection, change: str
) -> None:
    code = await code_of(client, mailbox, proven.email)
    await connection.execute(f"UPDATE identity.accounts SET {change} WHERE user_id = $1", proven.id)  # noqa: S608 - the test's own words
    problem_of(await log_in_by(client, proven.email, code), 401, "invalid_code")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE methods = '{email}'") == 0


async def test_the_second_factor_still_counts(client: httpx.AsyncClient, proven: Person, mailbox: Mailbox) -> None:
    totp = pyotp.TOTP((await proven.post("/v1/auth/mfa/totp")).json()["secret"])
    activated = await proven.post("/v1/auth/mfa/totp/activate", json={"code": totp.now()})
    recovery = activated.json()["recovery_codes"][0]
    code = await code_of(client, mailbox, proven.email)
    answer = await log_in_by(client, proven.email, code)
    assert set(answer.json()) == {"mfa_required", "mfa_token", "methods"}
    problem_of(await log_in_by(client, proven.email, code), 401, "invalid_code")
    body = {"mfa_token": answer.json()["mfa_token"], "code": recovery}
    verified = await client.post("/v1/auth/mfa/verify", json=body)
    assert verified.status_code == 200, verified.text
    headers = {"Authorization": f"Bearer {verified.json()['tokens']['access_token']}"}
    assert (await client.get("/v1/auth/session", headers=headers)).json()["methods"] == ["email", "recovery"]


async def test_the_first_proof_of_the_address_ends_what_a_stranger_has_made(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn
) -> None:
    squatter = await make_person(email="victim@example.com")
    key = (await squatter.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    totp = pyotp.TOTP((await squatter.post("/v1/auth/mfa/totp")).json()["secret"])
    assert (await squatter.post("/v1/auth/mfa/totp/activate", json={"code": totp.now()})).status_code == 200
    answer = await log_in_by(client, squatter.email, await code_of(client, mailbox, squatter.email))
    assert answer.json()["user"]["email_verified"] is True
    owner = Person(client, squatter.id, squatter.email, PASSWORD, answer.json()["tokens"])
    assert (await owner.get("/v1/users/me")).json() == answer.json()["user"]
    assert (await owner.get("/v1/auth/mfa")).json()["totp_enabled"] is False
    problem_of(await squatter.get("/v1/users/me"), 401, "token_revoked")
    assert (await client.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"})).status_code == 401


async def test_no_code_is_kept_in_clear(
    client: httpx.AsyncClient, proven: Person, mailbox: Mailbox, connection: Connection
) -> None:
    code = await code_of(client, mailbox, proven.email)
    tables = await connection.fetch("""
        SELECT t::text AS row FROM identity.one_time_tokens AS t
        UNION ALL SELECT t::text FROM jobs.jobs AS t UNION ALL SELECT t::text FROM jobs.mail_sends AS t
    """)
    stored = await connection.fetchval("SELECT token_hash FROM identity.one_time_tokens WHERE purpose = 'log_in'")
    assert len(stored) == 32
    assert not [row["row"] for row in tables if f'"{code}"' in row["row"]]
