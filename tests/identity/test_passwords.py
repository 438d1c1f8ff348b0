"""Forgotten, reset and changed passwords, and changed addresses: what ends with them, and which address is told."""

import asyncio
import unicodedata
from collections import Counter

import httpx
import pyotp
import pytest

from app.identity.api import IdentityServices
from app.identity.schemas.sessions import TokensResponse
from app.identity.service.password_policy import MAX_PASSWORD_LENGTH, normalise_password
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_login import without_request_id

NEW = "a new horse 2026"


async def reset_token(client: httpx.AsyncClient, mailbox: Mailbox, email: str, *, number: int = 1) -> str:
    assert (await client.post("/v1/auth/password/forgot", json={"email": email})).status_code == 202
    return (await mailbox.letter(email, "Set a new password", number=number)).token


async def test_forgot_answers_every_address_alike(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    jobs = await connection.fetchval("SELECT count(*) FROM jobs.jobs")
    known = await client.post("/v1/auth/password/forgot", json={"email": person.email})
    unknown = await client.post("/v1/auth/password/forgot", json={"email": "unknown@example.com"})
    assert known.status_code == 202
    assert without_request_id(known) == without_request_id(unknown)
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == jobs + 2


async def test_a_reset_ends_all_sessions_and_links(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn, connection: Connection
) -> None:
    person = await make_person()
    verify = await mailbox.letter(person.email, "Verify your e-mail address")
    await client.post("/v1/auth/email/verify", json={"token": verify.token})
    person, other = await log_in(person), await log_in(person)
    key = (await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    first = await reset_token(client, mailbox, person.email)
    token = await reset_token(client, mailbox, person.email, number=2)
    body = {"token": first, "new_password": NEW}
    problem_of(await client.post("/v1/auth/password/reset", json=body), 400, "invalid_token")
    body = {"token": token, "new_password": NEW}
    assert (await client.post("/v1/auth/password/reset", json=body)).status_code == 204
    problem_of(await client.post("/v1/auth/password/reset", json=body), 400, "invalid_token")
    for each in (person, other):
        problem_of(await each.get("/v1/users/me"), 401, "token_revoked")
        answer = await client.post("/v1/auth/refresh", json={"refresh_token": each.tokens["refresh_token"]})
        problem_of(answer, 401, "invalid_refresh_token")
    problem_of(
        await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD}),
        401,
        "invalid_credentials",
    )
    again = await log_in(person, password=NEW)
    problem_of(await client.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"}), 401, "invalid_token")
    await mailbox.letter(person.email, "Your password was changed")
    events = (await again.get("/v1/auth/security-events")).json()["items"]
    assert [event["action"] for event in events] == [
        *("logged_in", "login_failed", "password_reset", "api_key_revoked", "api_key_created"),
        *("logged_in", "logged_in", "email_verified", "registered"),
    ]


async def test_who_proves_an_address_first_is_rid_of_who_made_the_account(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn
) -> None:
    squatter = await make_person(email="victim@example.com")
    key = (await squatter.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    secret = (await squatter.post("/v1/auth/mfa/totp")).json()["secret"]
    code = pyotp.TOTP(secret).now()
    assert (await squatter.post("/v1/auth/mfa/totp/activate", json={"code": code})).status_code == 200
    assert (await client.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"})).status_code == 200
    token = await reset_token(client, mailbox, "victim@example.com")
    await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
    problem_of(await client.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"}), 401, "invalid_token")
    problem_of(await squatter.get("/v1/users/me"), 401, "token_revoked")
    victim = await log_in(squatter, password=NEW)
    assert (await victim.get("/v1/users/me")).json()["email_verified"] is True
    assert (await victim.get("/v1/auth/api-keys")).json()["items"] == []


async def test_a_weak_password_does_not_use_the_link_up(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person(email="ada.lovelace@example.com")
    assert (await person.patch("/v1/users/me", json={"display_name": "The Countess"})).status_code == 200
    answer = await person.post(
        "/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": "countess99"}
    )
    assert problem_of(answer, 422, "weak_password") == {"#/new_password": "too_similar"}
    token = await reset_token(client, mailbox, person.email)
    for weak, reason in (("short", "too_short"), ("lovelace1", "too_similar"), ("countess99", "too_similar")):
        answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": weak})
        assert problem_of(answer, 422, "weak_password") == {"#/new_password": reason}
    answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
    assert answer.status_code == 204


async def test_of_parallel_resets_with_one_link_one_counts(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person()
    token = await reset_token(client, mailbox, person.email)
    bodies = [{"token": token, "new_password": f"{NEW} {number}"} for number in range(6)]
    answers = await asyncio.gather(*(client.post("/v1/auth/password/reset", json=body) for body in bodies))
    assert Counter(answer.status_code for answer in answers) == {204: 1, 400: 5}
    (winner,) = [body["new_password"] for body, answer in zip(bodies, answers, strict=True) if answer.is_success]
    assert (await client.post("/v1/auth/login", json={"email": person.email, "password": winner})).status_code == 200


async def test_links_end(
    clock: ManualClock, client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    person = await make_person()
    token = await reset_token(client, mailbox, person.email)
    verify = await mailbox.letter(person.email, "Verify your e-mail address")
    # The links were made a moment after the test's clock stood still.
    clock.advance(1800 + 60)
    answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
    problem_of(answer, 400, "invalid_token")
    clock.advance(86_400 - 1800)
    problem_of(await client.post("/v1/auth/email/verify", json={"token": verify.token}), 400, "invalid_token")


async def test_a_link_is_good_for_its_purpose_only(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person()
    verify = (await mailbox.letter(person.email, "Verify your e-mail address")).token
    reset = await reset_token(client, mailbox, person.email)
    for path, body in (
        ("email/verify", {"token": reset}),
        ("email/confirm", {"token": reset}),
        ("email/confirm", {"token": verify}),
        ("password/reset", {"token": verify, "new_password": NEW}),
        ("email/verify", {"token": "x"}),
        ("email/verify", {"token": verify[:-1]}),
    ):
        problem_of(await client.post(f"/v1/auth/{path}", json=body), 400, "invalid_token")
    assert (await client.post("/v1/auth/email/verify", json={"token": verify})).status_code == 200


@pytest.mark.settings(APP_PUBLIC_URL="https://onehop.example")
async def test_links_do_not_follow_the_host_header(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person()
    headers = {"Host": "attacker.example", "X-Forwarded-Host": "attacker.example"}
    await client.post("/v1/auth/password/forgot", json={"email": person.email}, headers=headers)
    letter = await mailbox.letter(person.email, "Set a new password")
    assert "https://onehop.example/reset-password?token=" in letter.text
    assert "attacker" not in letter.text + letter.html


async def test_a_change_opens_a_new_session_and_ends_all_others(
    client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    other = await log_in(person)
    wrong = {"current_password": "not it at all", "new_password": NEW}
    problem_of(await person.post("/v1/auth/password/change", json=wrong), 403, "invalid_current_password")
    answer = await person.post("/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": NEW})
    tokens = body_of(answer, TokensResponse)
    for each in (person, other):
        problem_of(await each.get("/v1/users/me"), 401, "token_revoked")
    renewed = Person(client, person.id, person.email, NEW, tokens)
    assert (await renewed.get("/v1/users/me")).status_code == 200
    assert len((await renewed.get("/v1/auth/sessions")).json()["items"]) == 1
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert answer.status_code == 200


async def test_of_parallel_changes_one_counts(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    bodies = [{"current_password": PASSWORD, "new_password": f"{NEW} {number}"} for number in range(4)]
    answers = await asyncio.gather(*(person.post("/v1/auth/password/change", json=body) for body in bodies))
    # The last one may be refused because the winner has ended their session.
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] == 1
    assert statuses[401] + statuses[403] == 3
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE revoked_at IS NULL") == 1


async def test_guessing_the_present_password_is_braked(client: httpx.AsyncClient, person: Person) -> None:
    wrong = {"current_password": "not it at all", "new_password": NEW}
    answers = [await person.post("/v1/auth/password/change", json=wrong) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {403}
    for method, path, body in (
        ("POST", "/v1/auth/password/change", wrong),
        ("DELETE", "/v1/users/me", {"current_password": PASSWORD}),
        ("POST", "/v1/auth/email/change", {"current_password": PASSWORD, "new_email": "new@example.com"}),
    ):
        answer = await person.request(method, path, json=body)
        problem_of(answer, 429, "too_many_attempts")
        assert answer.headers["retry-after"] == "1"


async def test_a_change_of_address(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn
) -> None:
    person = await make_person(email="old@example.com")
    token = await reset_token(client, mailbox, "old@example.com")
    wrong = {"new_email": "new@example.com", "current_password": "not it at all"}
    problem_of(await person.post("/v1/auth/email/change", json=wrong), 403, "invalid_current_password")
    answer = await person.post("/v1/auth/email/change", json=wrong | {"current_password": PASSWORD})
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    letter = await mailbox.letter("new@example.com", "Confirm your new e-mail address")
    assert (await person.get("/v1/users/me")).json()["email"] == "old@example.com"
    assert (await client.post("/v1/auth/email/confirm", json={"token": letter.token})).status_code == 200
    problem_of(await client.post("/v1/auth/email/confirm", json={"token": letter.token}), 400, "invalid_token")
    notice = await mailbox.letter("old@example.com", "Your e-mail address was changed")
    assert "another e-mail address" in notice.text
    assert "http" not in notice.text + notice.html
    # What was sent to the old address is worth nothing now.
    answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
    problem_of(answer, 400, "invalid_token")
    renewed = await log_in(person, email="new@example.com")
    me = (await renewed.get("/v1/users/me")).json()
    assert (me["email"], me["email_verified"]) == ("new@example.com", True)
    answer = await client.post("/v1/auth/login", json={"email": "old@example.com", "password": PASSWORD})
    problem_of(answer, 401, "invalid_credentials")


async def test_an_address_that_somebody_has_got_meanwhile(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person()
    body = {"new_email": "new@example.com", "current_password": PASSWORD}
    assert (await person.post("/v1/auth/email/change", json=body)).status_code == 202
    letter = await mailbox.letter("new@example.com", "Confirm your new e-mail address")
    await make_person(email="NEW@example.com")
    problem_of(await client.post("/v1/auth/email/confirm", json={"token": letter.token}), 409, "email_taken")
    assert (await person.get("/v1/users/me")).json()["email"] == person.email


async def test_a_taken_address_is_not_told_to_who_wants_it(person: Person, make_person: MakePerson) -> None:
    other = await make_person()
    answers = [
        await person.post("/v1/auth/email/change", json={"new_email": email, "current_password": PASSWORD})
        for email in (other.email, "free@example.com")
    ]
    assert without_request_id(answers[0]) == without_request_id(answers[1])


def test_a_password_is_one_however_it_is_typed_and_never_takes_long() -> None:
    longest = "\u1f82" * MAX_PASSWORD_LENGTH
    assert len(unicodedata.normalize("NFD", longest)) == 4 * MAX_PASSWORD_LENGTH
    assert normalise_password(unicodedata.normalize("NFD", longest)) == longest
    # To put marks in their order would take a time that grows with the square of their number.
    assert len(normalise_password("a" * 10_000)) == 4 * (MAX_PASSWORD_LENGTH + 1)
    assert len(normalise_password(unicodedata.normalize("NFD", longest + "\u1f82"))) == MAX_PASSWORD_LENGTH + 1


async def test_a_reset_without_a_token_costs_no_hash(
    client: httpx.AsyncClient, person: Person, mailbox: Mailbox, identity: IdentityServices
) -> None:
    before = identity.hashing.count
    for token in ("x" * 43, "", person.tokens["refresh_token"]):
        answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
        assert answer.status_code in (400, 422)
    assert identity.hashing.count == before
    token = await reset_token(client, mailbox, person.email)
    for status in (204, 400):
        answer = await client.post("/v1/auth/password/reset", json={"token": token, "new_password": NEW})
        assert answer.status_code == status
    assert identity.hashing.count == before + 1
