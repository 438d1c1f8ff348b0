"""Passkeys: what a browser can add and log in with, and every answer of a browser that is refused."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pyotp
import pytest

from tests.fixtures.answers import problem_of
from tests.fixtures.application import Recorder
from tests.fixtures.authenticator import PRESENT, VERIFIED, Authenticator
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_login import without_request_id

PATH = "/v1/auth/passkeys"


async def add(person: Person, authenticator: Authenticator, **fields: str) -> httpx.Response:
    options = await person.post(f"{PATH}/options")
    assert options.status_code == 200, options.text
    credential = authenticator.create(options.json()["public_key"])
    return await person.post(PATH, json={"credential": credential} | fields)


async def added(person: Person) -> Authenticator:
    """The authenticator of a passkey that was just added."""
    authenticator = Authenticator()
    answer = await add(person, authenticator)
    assert answer.status_code == 201, answer.text
    return authenticator


async def options_of(client: httpx.AsyncClient, **fields: str) -> dict[str, Any]:
    options = await client.post(f"{PATH}/login/options", json=fields)
    assert options.status_code == 200, options.text
    found: dict[str, Any] = options.json()
    return found


async def log_in_by(client: httpx.AsyncClient, authenticator: Authenticator, **fields: str) -> httpx.Response:
    options = await options_of(client)
    body = {"credential": authenticator.get(options["public_key"]), "challenge": options["challenge"]} | fields
    answer = await client.post(f"{PATH}/login", json=body)
    client.cookies.clear()
    return answer


async def session_of(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['tokens']['access_token']}"}
    session: dict[str, Any] = (await client.get("/v1/auth/session", headers=headers)).json()
    return session


async def test_a_passkey_is_added_and_logs_in(
    client: httpx.AsyncClient, person: Person, connection: Connection, statements: Recorder
) -> None:
    options = (await person.post(f"{PATH}/options")).json()["public_key"]
    assert options["rp"] == {"name": "Onehop", "id": "localhost"}
    assert options["authenticatorSelection"] == {
        "residentKey": "required",
        "requireResidentKey": True,
        "userVerification": "required",
    }
    assert (options["attestation"], options["excludeCredentials"]) == ("none", [])
    authenticator = Authenticator()
    made = await person.post(PATH, json={"credential": authenticator.create(options)})
    assert made.status_code == 201, made.text
    assert made.json() == {
        "id": made.json()["id"],
        "name": "Google Password Manager",
        "created_at": made.json()["created_at"],
        "last_used_at": None,
        "backed_up": True,
        "transports": ["hybrid", "internal"],
    }
    with statements() as seen:
        answer = await log_in_by(client, authenticator, device_name="phone")
    assert answer.json()["user"]["id"] == str(person.id)
    assert [statement.label for statement in seen][:3] == ["identity.passkey", "identity.login", "identity.login_user"]
    assert (await session_of(client, answer))["methods"] == ["swk", "mfa"]
    (listed,) = (await person.get(PATH)).json()["items"]
    assert listed["last_used_at"] is not None
    again = (await person.post(f"{PATH}/options")).json()["public_key"]
    assert len(again["excludeCredentials"]) == 1
    rows = await connection.fetch("SELECT action, data FROM identity.security_events ORDER BY id DESC LIMIT 2")
    assert [row["action"] for row in rows] == ["logged_in", "passkey_added"]


async def test_a_passkey_can_open_a_session_of_a_cookie(client: httpx.AsyncClient, person: Person) -> None:
    answer = await log_in_by(client, await added(person), transport="cookie")
    assert set(answer.json()) == {"user"}
    assert any(line.startswith("onehop=sc_") for line in answer.headers.get_list("set-cookie"))


async def test_it_counts_as_two_factors_and_as_the_second_one(
    client: httpx.AsyncClient, make_person: MakePerson
) -> None:
    person = await make_person()
    authenticator = await added(person)
    totp = pyotp.TOTP((await person.post("/v1/auth/mfa/totp")).json()["secret"])
    assert (await person.post("/v1/auth/mfa/totp/activate", json={"code": totp.now()})).status_code == 200
    assert (await log_in_by(client, authenticator)).status_code == 200
    login = (await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})).json()
    assert login["methods"] == ["totp", "recovery_code", "passkey"]
    stranger = await added(await make_person())
    verified = []
    for each in (stranger, authenticator):
        options = await options_of(client)
        body = {"credential": each.get(options["public_key"]), "challenge": options["challenge"]}
        body["mfa_token"] = login["mfa_token"]
        # The second time it is spent.
        verified += [await client.post("/v1/auth/mfa/verify", json=body) for _ in range(2)]
    assert [answer.status_code for answer in verified] == [401, 401, 200, 401]
    assert (await session_of(client, verified[2]))["methods"] == ["pwd", "swk", "mfa"]
    assert (await client.post("/v1/auth/mfa/verify", json={"mfa_token": login["mfa_token"]})).status_code == 422


async def _answer_of(client: httpx.AsyncClient, authenticator: Authenticator) -> dict[str, Any]:
    options = await options_of(client)
    return {"credential": authenticator.get(options["public_key"]), "challenge": options["challenge"]}


async def _mfa_token(client: httpx.AsyncClient, person: Person) -> str:
    login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    token: str = login.json()["mfa_token"]
    return token


async def test_behind_a_password_both_the_token_and_the_answer_work_once(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    authenticator = await added(person)
    totp = pyotp.TOTP((await person.post("/v1/auth/mfa/totp")).json()["secret"])
    assert (await person.post("/v1/auth/mfa/totp/activate", json={"code": totp.now()})).status_code == 200
    token, other = await _mfa_token(client, person), await _mfa_token(client, person)
    first, second = await _answer_of(client, authenticator), await _answer_of(client, authenticator)

    async def verify(mfa_token: str, answer: dict[str, Any]) -> httpx.Response:
        return await client.post("/v1/auth/mfa/verify", json={"mfa_token": mfa_token} | answer)

    assert (await verify(token, first)).status_code == 200
    problem_of(await verify(token, second), 401, "invalid_mfa_token")
    problem_of(await verify(other, first), 401, "invalid_passkey")
    problem_of(await client.post(f"{PATH}/login", json=first), 401, "invalid_passkey")
    opened = "SELECT count(*) FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NULL AND 'mfa' = ANY(methods)"
    assert await connection.fetchval(opened, person.id) == 1
    # What was refused has used up nothing.
    assert (await verify(other, second)).status_code == 200
    rows = await connection.fetch(
        "SELECT action, actor_id FROM identity.security_events WHERE action IN ('login_failed', 'second_factor_failed')"
    )
    assert [tuple(row) for row in rows] == [("second_factor_failed", person.id), ("login_failed", None)]


async def test_one_answer_opens_one_session(client: httpx.AsyncClient, person: Person, connection: Connection) -> None:
    authenticator = await added(person)
    options = await options_of(client)
    body = {"credential": authenticator.get(options["public_key"]), "challenge": options["challenge"]}
    answers = await asyncio.gather(*(client.post(f"{PATH}/login", json=body) for _ in range(4)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
    problem_of(await client.post(f"{PATH}/login", json=body), 401, "invalid_passkey")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE 'mfa' = ANY(methods)") == 1


async def test_the_options_tell_of_no_address(client: httpx.AsyncClient, person: Person, statements: Recorder) -> None:
    await added(person)
    with statements() as seen:
        found = [await options_of(client, email=email) for email in (person.email, "no@example.com")]
    assert seen == []
    for options in found:
        assert options["public_key"].pop("challenge") == options.pop("challenge")
    assert (
        found[0]
        == found[1]
        == {
            "public_key": {
                "rpId": "localhost",
                "timeout": 300_000,
                "allowCredentials": [],
                "userVerification": "required",
            }
        }
    )


WRONG: dict[str, Callable[[Authenticator], None]] = {
    "another origin": lambda each: setattr(each, "origin", "https://evil.example"),
    "an origin of the same host": lambda each: setattr(each, "origin", "http://127.0.0.1:9"),
    "another domain": lambda each: setattr(each, "rp_id", "evil.example"),
    "a user that was not verified": lambda each: setattr(each, "flags", PRESENT),
    "no user": lambda each: setattr(each, "flags", VERIFIED),
}


async def test_a_browser_that_answers_for_another_site_is_refused(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    authenticator = await added(person)
    good = {name: getattr(authenticator, name) for name in ("origin", "rp_id", "flags")}
    for name, spoil in WRONG.items():
        new = Authenticator()
        spoil(new)
        answer = await add(person, new)
        assert (answer.status_code, answer.json()["code"]) == (400, "passkey_rejected"), name
        spoil(authenticator)
        answer = await log_in_by(client, authenticator)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_passkey"), name
        for attribute, value in good.items():
            setattr(authenticator, attribute, value)
    assert await connection.fetchval("SELECT count(*) FROM identity.passkeys") == 1
    assert (await log_in_by(client, authenticator)).status_code == 200


async def test_another_s_credential_does_not_log_in(client: httpx.AsyncClient, make_person: MakePerson) -> None:
    victim, attacker = await make_person(), await make_person()
    known = await added(victim)
    forged = Authenticator(credential_id=known.credential_id, user_handle=known.user_handle)
    problem_of(await log_in_by(client, forged), 401, "invalid_passkey")
    problem_of(await log_in_by(client, Authenticator()), 401, "invalid_passkey")
    own = await added(attacker)
    own.user_handle = victim.id.bytes
    problem_of(await log_in_by(client, own), 401, "invalid_passkey")
    problem_of(await add(attacker, forged), 409, "passkey_taken")
    # Options of one user are of no use to another.
    options = (await victim.post(f"{PATH}/options")).json()["public_key"]
    body = {"credential": Authenticator().create(options)}
    problem_of(await attacker.post(PATH, json=body), 400, "passkey_rejected")


async def test_a_challenge_is_for_one_purpose_and_five_minutes(
    clock: ManualClock, client: httpx.AsyncClient, person: Person
) -> None:
    authenticator = await added(person)
    creation = (await person.post(f"{PATH}/options")).json()["public_key"]
    options = await options_of(client)
    crossed = {"credential": Authenticator().create(creation | {"challenge": options["challenge"]})}
    problem_of(await person.post(PATH, json=crossed), 400, "passkey_rejected")
    request = options["public_key"] | {"challenge": creation["challenge"]}
    body = {"credential": authenticator.get(request), "challenge": creation["challenge"]}
    problem_of(await client.post(f"{PATH}/login", json=body), 401, "invalid_passkey")
    late = {"credential": authenticator.get(options["public_key"]), "challenge": options["challenge"]}
    new = {"credential": Authenticator().create(creation)}
    clock.advance(301)
    problem_of(await client.post(f"{PATH}/login", json=late), 401, "invalid_passkey")
    problem_of(await person.post(PATH, json=new), 400, "passkey_rejected")


async def test_a_counter_that_does_not_grow_is_that_of_a_copy(
    client: httpx.AsyncClient, person: Person, mailbox: Mailbox, connection: Connection
) -> None:
    authenticator = Authenticator(counter=0, flags=PRESENT | VERIFIED, aaguid=bytes(16))
    made = await add(person, authenticator)
    assert (made.json()["name"], made.json()["backed_up"]) == ("Passkey", False)
    answer = await log_in_by(client, authenticator)
    assert (await session_of(client, answer))["methods"] == ["hwk", "mfa"]
    # An answer that is sent again is refused and no sign of a copy, nor is a counter that was not signed.
    authenticator.counter = 4
    sent = await _answer_of(client, authenticator)
    assert (await client.post(f"{PATH}/login", json=sent)).status_code == 200
    problem_of(await client.post(f"{PATH}/login", json=sent), 401, "invalid_passkey")
    forged = Authenticator(credential_id=authenticator.credential_id, user_handle=authenticator.user_handle, counter=1)
    problem_of(await log_in_by(client, forged), 401, "invalid_passkey")
    trail = "SELECT action FROM identity.security_events WHERE user_id = $1 ORDER BY id DESC LIMIT 2"
    assert [row["action"] for row in await connection.fetch(trail, person.id)] == ["login_failed"] * 2
    authenticator.counter = 0
    problem_of(await log_in_by(client, authenticator), 401, "invalid_passkey")
    found = [row["action"] for row in await connection.fetch(trail, person.id)]
    assert found == ["login_failed", "passkey_copy_suspected"]
    await mailbox.letter(person.email, "A passkey may have been copied")
    authenticator.counter = 7
    assert (await log_in_by(client, authenticator)).status_code == 200


async def test_a_fresh_log_in_is_needed_to_add_and_to_remove(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    await added(person)
    (passkey,) = (await person.get(PATH)).json()["items"]
    options = (await person.post(f"{PATH}/options")).json()["public_key"]
    clock.advance(899)
    refreshed = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    old = Person(client, person.id, person.email, PASSWORD, refreshed.json())
    assert (await old.post(f"{PATH}/options")).status_code == 200
    clock.advance(2)
    calls: list[tuple[str, str, Any]] = [
        ("POST", f"{PATH}/options", None),
        ("DELETE", f"{PATH}/{passkey['id']}", None),
    ]
    for method, path, body in calls:
        problem_of(await old.request(method, path, json=body), 403, "reauthentication_required")
    problem_of(await old.post(PATH, json={"credential": Authenticator().create(options)}), 400, "passkey_rejected")
    renamed = await old.patch(f"{PATH}/{passkey['id']}", json={"name": "phone"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "phone")
    fresh = await log_in(person)
    assert (await fresh.delete(f"{PATH}/{passkey['id']}")).status_code == 204
    problem_of(await fresh.delete(f"{PATH}/{passkey['id']}"), 404, "passkey_not_found")


async def test_a_removed_passkey_does_not_log_in(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person, other = await make_person(), await make_person()
    authenticator = await added(person)
    (passkey,) = (await person.get(PATH)).json()["items"]
    for method, body in (("DELETE", None), ("PATCH", {"name": "mine"})):
        answer = await other.request(method, f"{PATH}/{passkey['id']}", json=body)
        problem_of(answer, 404, "passkey_not_found")
    assert (await person.delete(f"{PATH}/{passkey['id']}")).status_code == 204
    problem_of(await log_in_by(client, authenticator), 401, "invalid_passkey")
    await mailbox.letter(person.email, "A passkey was added")
    await mailbox.letter(person.email, "A passkey was removed")


async def test_adding_one_again_with_the_same_key_gets_the_same_answer(
    clock: ManualClock, person: Person, connection: Connection
) -> None:
    options = (await person.post(f"{PATH}/options")).json()["public_key"]
    body, key = {"credential": Authenticator().create(options)}, {"Idempotency-Key": "k-1"}
    made = await person.post(PATH, json=body, headers=key)
    assert made.status_code == 201, made.text
    clock.advance(301)
    again = await person.post(PATH, json=body, headers=key)
    assert (again.status_code, again.json()) == (201, made.json())
    assert await connection.fetchval("SELECT count(*) FROM identity.passkeys") == 1


async def test_at_most_twenty_also_at_the_same_moment(person: Person, connection: Connection) -> None:
    await connection.execute(
        """
        INSERT INTO identity.passkeys (user_id, id, credential_id, public_key, sign_count, name, transports, backed_up)
        SELECT $1, gen_random_uuid(), decode(md5(n::text), 'hex'), '', 0, 'k', '{}', true
          FROM generate_series(1, 19) AS n
        """,
        person.id,
    )
    answers = await asyncio.gather(*(add(person, Authenticator()) for _ in range(3)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 2}
    problem_of(await add(person, Authenticator()), 409, "too_many_passkeys")


@pytest.mark.parametrize("status", ["banned", "deleted"])
async def test_a_closed_account_is_not_logged_in_to(
    client: httpx.AsyncClient, person: Person, connection: Connection, status: str
) -> None:
    authenticator = await added(person)
    await connection.execute("UPDATE identity.accounts SET status = $2 WHERE user_id = $1", person.id, status)
    answer = await log_in_by(client, authenticator)
    assert answer.status_code == (403 if status == "banned" else 401)
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE 'mfa' = ANY(methods)") == 0


async def test_the_first_proof_of_an_address_ends_the_passkeys_of_a_squatter(
    client: httpx.AsyncClient, person: Person, mailbox: Mailbox, connection: Connection
) -> None:
    authenticator = await added(person)
    letter = await mailbox.letter(person.email, "Verify your e-mail address")
    assert (await client.post("/v1/auth/email/verify", json={"token": letter.token})).status_code == 200
    problem_of(await log_in_by(client, authenticator), 401, "invalid_passkey")
    assert await connection.fetchval("SELECT count(*) FROM identity.passkeys") == 0


GARBAGE: list[Any] = [
    {},
    {"id": 1, "rawId": 2, "response": 3},
    {"id": "x", "rawId": "x", "type": "public-key", "response": {}},
    {"rawId": "é", "response": {"clientDataJSON": "!"}},
    {
        "response": {"clientDataJSON": "bnVsbA", "attestationObject": "oA"},
        "id": "AA",
        "rawId": "AA",
        "type": "public-key",
    },
]


async def test_garbage_is_refused(client: httpx.AsyncClient, person: Person) -> None:
    options = await options_of(client)
    creation = (await person.post(f"{PATH}/options")).json()["public_key"]
    good = Authenticator().create(creation)
    broken = [good | {"response": good["response"] | {"attestationObject": text}} for text in ("", "gA", "n" * 4000)]
    for credential in (*GARBAGE, *broken):
        problem_of(await person.post(PATH, json={"credential": credential}), 400, "passkey_rejected")
        for challenge in (options["challenge"], "x", "é"):
            body = {"credential": credential, "challenge": challenge}
            problem_of(await client.post(f"{PATH}/login", json=body), 401, "invalid_passkey")


async def test_both_kinds_of_failure_look_alike(client: httpx.AsyncClient, person: Person) -> None:
    known = await added(person)
    wrong = [
        await log_in_by(client, Authenticator()),
        await log_in_by(client, Authenticator(credential_id=known.credential_id)),
    ]
    assert without_request_id(wrong[0]) == without_request_id(wrong[1])


def rsa_key(modulus_bytes: int, exponent: bytes) -> dict[int, Any]:
    return {1: 3, 3: -257, -1: b"\xff" * modulus_bytes, -2: exponent}


@pytest.mark.parametrize(
    ("authenticator", "status"),
    [
        (Authenticator(cose=rsa_key(512, b"\x01\x00\x01")), 201),
        (Authenticator(cose=rsa_key(520, b"\x01\x00\x01")), 400),
        (Authenticator(cose=rsa_key(384, b"\x7f" * 384)), 400),
        (Authenticator(credential_id=bytes(1023)), 201),
        (Authenticator(credential_id=bytes(1024)), 400),
        (Authenticator(cose={1: 2, 3: -7, -1: 1, -2: bytes(5000), -3: bytes(32)}), 400),
    ],
    ids=["RSA", "long modulus", "long exponent", "id", "long id", "long key"],
)
async def test_a_credential_costs_no_more_than_that_of_a_real_authenticator(
    person: Person, authenticator: Authenticator, status: int
) -> None:
    answer = await add(person, authenticator)
    assert answer.status_code == status
    if status == 400:
        problem_of(answer, 400, "passkey_rejected")
    assert len((await person.get(PATH)).json()["items"]) == (status == 201)
