"""New accounts, in each of the three modes, and what passwords they may have."""

import asyncio
from collections import Counter

import httpx
import pytest

from app.identity.api import IdentityServices
from app.identity.schemas.accounts import AcceptedResponse
from app.identity.schemas.sessions import SignedInResponse
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_login import without_request_id

VERIFY = pytest.mark.settings(APP_IDENTITY_REGISTRATION="verify")
TABLES = ("identity.accounts", "users.users", "identity.sessions", "jobs.jobs")


async def counts(connection: Connection) -> list[int]:
    return [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES]  # noqa: S608


async def test_open_registration_logs_in_and_sends_a_link(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn, connection: Connection
) -> None:
    answer = await client.post(
        "/v1/auth/register",
        json={"email": "Ada@Example.COM", "password": PASSWORD, "display_name": "Ada", "timezone": "Europe/London"},
    )
    body = body_of(answer, SignedInResponse, 201)
    ada = Person(client, body["user"]["id"], "Ada@example.com", PASSWORD, body["tokens"])
    assert (await ada.get("/v1/users/me")).json() == body["user"]
    assert (body["user"]["email"], body["user"]["email_verified"]) == ("Ada@example.com", False)
    letter = await mailbox.letter("Ada@example.com", "Verify your e-mail address")
    for status in (200, 400):
        answer = await client.post("/v1/auth/email/verify", json={"token": letter.token})
        assert answer.status_code == status
    problem_of(answer, 400, "invalid_token")
    # The proof ends what was there before it.
    problem_of(await ada.get("/v1/users/me"), 401, "token_revoked")
    assert (await (await log_in(ada)).get("/v1/users/me")).json()["email_verified"] is True
    problem_of(
        await client.post("/v1/auth/register", json={"email": "ADA@example.com", "password": PASSWORD}),
        409,
        "email_taken",
    )
    assert await counts(connection) == [1, 1, 2, 1]


async def test_of_parallel_registrations_one_wins(client: httpx.AsyncClient, connection: Connection) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}
    answers = await asyncio.gather(*(client.post("/v1/auth/register", json=body) for _ in range(12)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 11}
    assert await counts(connection) == [1, 1, 1, 1]


@VERIFY
async def test_verified_registration_answers_every_address_alike(
    client: httpx.AsyncClient, mailbox: Mailbox, connection: Connection, identity: IdentityServices
) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}
    hashes = identity.hashing.count
    first = await client.post("/v1/auth/register", json=body)
    assert body_of(first, AcceptedResponse, 202) == {"status": "accepted"}
    problem_of(await client.post("/v1/auth/login", json=body), 403, "email_not_verified")
    wrong = await client.post("/v1/auth/login", json=body | {"password": "not it at all"})
    problem_of(wrong, 401, "invalid_credentials")
    letter = await mailbox.letter("ada@example.com", "Verify your e-mail address")
    assert (await client.post("/v1/auth/email/verify", json={"token": letter.token})).status_code == 200
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200

    known = await client.post(
        "/v1/auth/register", json=body | {"email": "ADA@example.com", "password": "another one 77"}
    )
    assert without_request_id(known) == without_request_id(first)
    letter = await mailbox.letter("ada@example.com", "You have an Onehop account already")
    assert "/forgot-password" in letter.text
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200
    assert identity.hashing.count - hashes == 6
    assert (await counts(connection))[:3] == [1, 1, 2]


@VERIFY
async def test_registering_again_before_verification_sends_again_and_changes_nothing(
    client: httpx.AsyncClient, mailbox: Mailbox, connection: Connection
) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}
    await client.post("/v1/auth/register", json=body)
    before = await connection.fetchrow("SELECT * FROM identity.accounts")
    first = await mailbox.letter("ada@example.com", "Verify your e-mail address")
    await client.post("/v1/auth/register", json=body | {"password": "another user's 1"})
    second = await mailbox.letter("ada@example.com", "Verify your e-mail address", number=2)
    assert await connection.fetchrow("SELECT * FROM identity.accounts") == before
    problem_of(await client.post("/v1/auth/email/verify", json={"token": first.token}), 400, "invalid_token")
    assert (await client.post("/v1/auth/email/verify", json={"token": second.token})).status_code == 200


@pytest.mark.settings(APP_IDENTITY_REGISTRATION="closed")
async def test_closed_registration(client: httpx.AsyncClient, connection: Connection) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}
    problem_of(await client.post("/v1/auth/register", json=body), 403, "registration_closed")
    assert await counts(connection) == [0, 0, 0, 0]


@VERIFY
async def test_a_network_asks_ten_times_for_mail_of_a_purpose_to_one_address_and_nobody_can_tell(
    client: httpx.AsyncClient, connection: Connection
) -> None:
    answers = []
    for path in ("register", "email/resend", "password/forgot", "register"):
        body = {"email": "victim@example.com"} | ({"password": PASSWORD} if path == "register" else {})
        answers += [await client.post(f"/v1/auth/{path}", json=body) for _ in range(4)]
    assert len({str(without_request_id(answer)) for answer in answers}) == 1
    rows = await connection.fetch("SELECT kind, count(*) FROM jobs.jobs GROUP BY kind ORDER BY kind")
    assert [tuple(row) for row in rows] == [("identity.mail_registered", 10), ("identity.mail_reset", 4)]


@pytest.mark.settings(APP_IDENTITY_NETWORK_REGISTRATIONS="3")
async def test_a_network_has_a_quota_of_accounts_and_letters(
    client: httpx.AsyncClient, connection: Connection, make_person: MakePerson
) -> None:
    for _ in range(2):
        await make_person()
    assert (await client.post("/v1/auth/password/forgot", json={"email": "x@example.com"})).status_code == 202
    for path in ("register", "email/resend", "password/forgot"):
        body = {"email": "x@example.com"} | ({"password": PASSWORD} if path == "register" else {})
        refused = await client.post(f"/v1/auth/{path}", json=body)
        problem_of(refused, 429, "too_many_attempts")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await counts(connection))[0] == 2


PASSWORDS = {
    "seven77": "too_short",
    "a" * 129: "too_long",
    "password123": "too_common",
    "PassWord123": "too_common",
    "12345678": "too_common",
    "iloveyou": "too_common",
    "ada.lovelace@example.com": "too_similar",
    "lovelace1": "too_similar",
    "ecalevol12": "too_similar",
    "Adalovelace": "too_similar",
    "countess99": "too_similar",
}


@pytest.mark.parametrize(("password", "reason"), PASSWORDS.items())
async def test_passwords_that_are_refused(client: httpx.AsyncClient, password: str, reason: str) -> None:
    body = {"email": "ada.lovelace@example.com", "password": password, "display_name": "Countess"}
    answer = await client.post("/v1/auth/register", json=body)
    problem = problem_of(answer, 422, "weak_password")
    assert problem == {"#/password": reason}
    assert password not in answer.text


@pytest.mark.parametrize(
    "password",
    [
        "eight 8!",
        "a" * 127 + "b",
        "        z",
        "correct horse",
        "🐎🔋📎🐎🔋📎🐎🔋",
        "nur Kleinbuchstaben",
        "x\u0301" * 9,
    ],
)
async def test_passwords_that_are_accepted(client: httpx.AsyncClient, make_person: MakePerson, password: str) -> None:
    person = await make_person(password=password)
    body = {"email": person.email, "password": password}
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ada",
        "ada@",
        "@example.com",
        "a b@example.com",
        "ada@example.com\r\nBcc: x@example.com",
        "a@b@c.com",
        "a" * 65 + "@example.com",
    ],
)
async def test_addresses_that_are_none(client: httpx.AsyncClient, connection: Connection, email: str) -> None:
    answer = await client.post("/v1/auth/register", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 422
    assert await counts(connection) == [0, 0, 0, 0]


async def test_a_role_cannot_be_registered(client: httpx.AsyncClient, connection: Connection) -> None:
    for extra in ({"role": "admin"}, {"roles": ["admin"]}, {"email_verified": True}, {"id": "x"}, {"version": 9}):
        answer = await client.post("/v1/auth/register", json={"email": "a@example.com", "password": PASSWORD} | extra)
        assert answer.status_code == 422
    assert await counts(connection) == [0, 0, 0, 0]
