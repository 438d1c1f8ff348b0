"""An account made by a stranger with the address of another person: the first proof of the address, and each reset,
ends whatever the stranger has set up.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import pyotp
import pytest

from tests.fixtures.answers import problem_of
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.jobs.receiver import LOCAL

NEW = "a new horse 2026"
VICTIM = "victim@example.com"


@dataclass(frozen=True)
class Foothold:
    """Everything that a stranger can set up in an account."""

    thief: Person
    api_key: str
    recovery_code: str

    async def lost(self, client: httpx.AsyncClient, connection: Connection) -> None:
        """Nothing of it works any more, and nothing of it is stored."""
        problem_of(await self.thief.get("/v1/users/me"), 401, "token_revoked")
        refreshed = await client.post("/v1/auth/refresh", json={"refresh_token": self.thief.tokens["refresh_token"]})
        problem_of(refreshed, 401, "invalid_refresh_token")
        problem_of(await client.get("/v1/users/me", headers=bearer(self.api_key)), 401, "invalid_token")
        assert await living(connection, self.thief) == {
            "sessions": 0,
            "api_keys": 0,
            "totp_factors": 0,
            "recovery_codes": 0,
            "one_time_tokens": 0,
            "endpoints": 0,
        }


LIVING = {
    "sessions": "SELECT count(*) FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NULL",
    "api_keys": "SELECT count(*) FROM identity.api_keys WHERE user_id = $1 AND revoked_at IS NULL",
    "totp_factors": "SELECT count(*) FROM identity.totp_factors WHERE user_id = $1",
    "recovery_codes": "SELECT count(*) FROM identity.recovery_codes WHERE user_id = $1",
    "one_time_tokens": "SELECT count(*) FROM identity.one_time_tokens WHERE user_id = $1",
    "endpoints": "SELECT count(*) FROM jobs.webhook_endpoints WHERE user_id = $1 AND disabled_at IS NULL",
}


async def living(connection: Connection, person: Person) -> dict[str, int]:
    return {name: await connection.fetchval(query, person.id) for name, query in LIVING.items()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def set_up(client: httpx.AsyncClient, thief: Person) -> Foothold:
    key = (await thief.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    assert (await client.get("/v1/users/me", headers=bearer(key))).status_code == 200
    secret = (await thief.post("/v1/auth/mfa/totp")).json()["secret"]
    activated = await thief.post("/v1/auth/mfa/totp/activate", json={"code": pyotp.TOTP(secret).now()})
    assert activated.status_code == 200
    body = {"url": "http://127.0.0.1:9/", "event_types": ["invoice.issued"]}
    assert (await thief.post("/v1/webhooks/endpoints", json=body)).status_code == 201
    return Foothold(thief, key, activated.json()["recovery_codes"][0])


async def prove(client: httpx.AsyncClient, mailbox: Mailbox, thief: Person) -> None:
    letter = await mailbox.letter(thief.email, "Verify your e-mail address")
    assert (await client.post("/v1/auth/email/verify", json={"token": letter.token})).status_code == 200


async def reset(client: httpx.AsyncClient, mailbox: Mailbox, email: str) -> None:
    assert (await client.post("/v1/auth/password/forgot", json={"email": email})).status_code == 202
    letter = await mailbox.letter(email, "Set a new password")
    body = {"token": letter.token, "new_password": NEW}
    assert (await client.post("/v1/auth/password/reset", json=body)).status_code == 204


@LOCAL
async def test_the_first_proof_of_an_address_ends_everything_made_before_it(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    foothold = await set_up(client, await make_person(email=VICTIM))
    await prove(client, mailbox, foothold.thief)
    await foothold.lost(client, connection)


@LOCAL
async def test_a_reset_ends_what_was_made_behind_the_proof_with_the_password_of_before(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection, log_in: LogIn
) -> None:
    thief = await make_person(email=VICTIM)
    await prove(client, mailbox, thief)
    # The thief chose the password, so the proof alone does not keep them out.
    foothold = await set_up(client, await log_in(thief))
    await reset(client, mailbox, VICTIM)
    await foothold.lost(client, connection)
    owner = await log_in(thief, password=NEW)
    assert (await owner.get("/v1/auth/mfa")).json() == {"totp_enabled": False, "recovery_codes_left": 0}
    assert (await owner.get("/v1/auth/api-keys")).json()["items"] == []
    (endpoint,) = (await owner.get("/v1/webhooks/endpoints")).json()["items"]
    assert (endpoint["status"], endpoint["disabled_reason"]) == ("disabled", "credentials_ended")


@LOCAL
async def test_a_reset_that_is_the_first_proof_ends_everything_too(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection, log_in: LogIn
) -> None:
    foothold = await set_up(client, await make_person(email=VICTIM))
    await reset(client, mailbox, VICTIM)
    await foothold.lost(client, connection)
    owner = await log_in(foothold.thief, password=NEW)
    assert (await owner.get("/v1/users/me")).json()["email_verified"] is True


@LOCAL
async def test_an_address_that_is_proven_first_by_a_change_ends_everything_too(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    thief = await make_person(email="thief@example.com")
    foothold = await set_up(client, thief)
    body = {"new_email": VICTIM, "current_password": PASSWORD}
    assert (await thief.post("/v1/auth/email/change", json=body)).status_code == 202
    letter = await mailbox.letter(VICTIM, "Confirm your new e-mail address")
    assert (await client.post("/v1/auth/email/confirm", json={"token": letter.token})).status_code == 200
    await foothold.lost(client, connection)


async def test_an_address_that_was_proven_before_keeps_the_sessions_of_its_owner(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn
) -> None:
    person = await make_person()
    await prove(client, mailbox, person)
    owner = await log_in(person)
    body = {"new_email": "new@example.com", "current_password": PASSWORD}
    assert (await owner.post("/v1/auth/email/change", json=body)).status_code == 202
    letter = await mailbox.letter("new@example.com", "Confirm your new e-mail address")
    assert (await client.post("/v1/auth/email/confirm", json={"token": letter.token})).status_code == 200
    assert (await owner.get("/v1/users/me")).json()["email"] == "new@example.com"


@LOCAL
async def test_a_second_factor_of_a_stranger_does_not_void_the_link_of_the_owner(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    thief = await make_person(email=VICTIM)
    letter = await mailbox.letter(VICTIM, "Verify your e-mail address")
    foothold = await set_up(client, thief)
    assert (await client.post("/v1/auth/email/verify", json={"token": letter.token})).status_code == 200
    await foothold.lost(client, connection)


@LOCAL
@pytest.mark.parametrize("proof", ["verify", "reset"])
async def test_half_a_log_in_of_before_opens_nothing(
    proof: str, client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    foothold = await set_up(client, await make_person(email=VICTIM))
    login = await client.post("/v1/auth/login", json={"email": VICTIM, "password": PASSWORD})
    mfa_token: Any = login.json()["mfa_token"]
    await (prove(client, mailbox, foothold.thief) if proof == "verify" else reset(client, mailbox, VICTIM))
    body = {"mfa_token": mfa_token, "code": foothold.recovery_code}
    problem_of(await client.post("/v1/auth/mfa/verify", json=body), 401, "invalid_mfa_token")


async def test_keys_made_while_the_address_is_being_reset_do_not_survive(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    for number in range(3):
        thief = await make_person(email=f"victim{number}@example.com")
        assert (await client.post("/v1/auth/password/forgot", json={"email": thief.email})).status_code == 202
        letter = await mailbox.letter(thief.email, "Set a new password")
        body = {"token": letter.token, "new_password": NEW}
        key = {"name": "k", "scopes": ["profile:read"]}
        done, *made = await asyncio.gather(
            client.post("/v1/auth/password/reset", json=body),
            *(thief.post("/v1/auth/api-keys", json=key) for _ in range(12)),
        )
        assert done.status_code == 204
        assert {answer.status_code for answer in made} <= {201, 401}
        for answer in made:
            if answer.status_code == 201:
                refused = await client.get("/v1/users/me", headers=bearer(answer.json()["key"]))
                problem_of(refused, 401, "invalid_token")
        assert (await living(connection, thief))["api_keys"] == 0
