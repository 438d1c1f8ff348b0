"""After everything that can be done with an account, nothing stored or logged is good for a thief."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyotp
import redis.asyncio

from app.identity.service.tokens import decode_api_key
from app.kernel.sealing import Keys
from tests.fixtures.application import LiveServer, LiveWorker, Processes
from tests.fixtures.http import http_client
from tests.fixtures.people import PASSWORD, Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import scaled
from tests.identity.conftest import Mailbox

NEW, NEWEST = "a new horse 2026", "the newest horse 2027"


async def use_everything(url: str, mailbox: Mailbox) -> dict[str, str]:
    """The credentials that a user has held, some of them still good."""
    secrets: dict[str, str] = {"password": PASSWORD, "new password": NEW, "newest password": NEWEST}

    def keep(name: str, tokens: dict[str, Any]) -> None:
        secrets[f"{name}: access token"] = tokens["access_token"]
        secrets[f"{name}: refresh token"] = tokens["refresh_token"]

    async with http_client(url, timeout=scaled(20)) as client:
        person = await register(client, email="ada@example.com")
        keep("registration", person.tokens)
        secrets["verification"] = (await mailbox.letter(person.email, "Verify your e-mail address")).token
        await client.post("/v1/auth/email/verify", json={"token": secrets["verification"]})
        # The first proof of the address has ended what was made before it.
        login = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
        person = Person(client, person.id, person.email, PASSWORD, login.json()["tokens"])
        keep("log-in", person.tokens)
        answer = await client.post(
            "/v1/auth/refresh",
            json={"refresh_token": person.tokens["refresh_token"]},
            headers={"Idempotency-Key": "a-retry-key-of-the-client"},
        )
        keep("refresh", answer.json())
        secrets["retry key"] = "a-retry-key-of-the-client"
        key = await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["events:write"]})
        secrets["API key"] = key.json()["key"]
        secrets["API key's secret"] = base64.urlsafe_b64encode(decode_api_key(secrets["API key"]).secret).decode()
        headers = {"Authorization": f"Bearer {secrets['API key']}"}
        assert (await client.post("/v1/events", json={"kind": "a"}, headers=headers)).status_code == 201
        change = {"current_password": PASSWORD, "new_password": NEW}
        person = Person(
            client, person.id, person.email, NEW, (await person.post("/v1/auth/password/change", json=change)).json()
        )
        keep("password change", person.tokens)
        wanted = {"new_email": "countess@example.com", "current_password": NEW}
        assert (await person.post("/v1/auth/email/change", json=wanted)).status_code == 202
        secrets["change of address"] = (
            await mailbox.letter("countess@example.com", "Confirm your new e-mail address")
        ).token
        await client.post("/v1/auth/password/forgot", json={"email": person.email})
        secrets["reset"] = (await mailbox.letter(person.email, "Set a new password")).token
        enrolment = (await person.post("/v1/auth/mfa/totp")).json()
        secrets["TOTP seed"] = enrolment["secret"]
        code = {"code": pyotp.TOTP(enrolment["secret"]).now()}
        codes = (await person.post("/v1/auth/mfa/totp/activate", json=code)).json()["recovery_codes"]
        secrets |= {f"recovery code {number}": text for number, text in enumerate(codes)}
        secrets |= {f"bare recovery code {number}": text.replace("-", "") for number, text in enumerate(codes)}
        half = await client.post("/v1/auth/login", json={"email": person.email, "password": NEW})
        secrets["mfa token"] = half.json()["mfa_token"]
        verify = {"mfa_token": secrets["mfa token"], "code": codes[0]}
        answer = await client.post("/v1/auth/mfa/verify", json=verify)
        keep("second factor", answer.json()["tokens"])
        secrets["device cookie"] = answer.cookies["onehop_device"]
        await client.post("/v1/auth/login", json={"email": person.email, "password": "a mistyped horse"})
        secrets["mistyped password"] = "a mistyped horse"
        form = {"grant_type": "password", "username": person.email, "password": NEW}
        await client.post("/v1/auth/token", data=form)
        await client.post("/v1/auth/introspect", data={"token": person.tokens["refresh_token"]}, headers=person.headers)
        for wrong in (secrets["reset"] + "x", secrets["API key"]):
            await client.post("/v1/auth/password/reset", json={"token": wrong, "new_password": NEWEST})
        # Query strings are not the place for a token, but a client will put one there.
        await client.get("/v1/users/me", params={"access_token": person.tokens["access_token"]})
    return secrets


def spellings(secret: str) -> Iterator[bytes]:
    """How it may stand somewhere: as it is, in hex, in base64; and the bytes that it spells."""
    raws = [secret.encode()]
    for decode in (base64.b32decode, base64.urlsafe_b64decode, bytes.fromhex):
        try:
            raws.append(decode(secret + ("=" * (-len(secret) % 4) if decode is base64.urlsafe_b64decode else "")))
        except ValueError:
            continue
    for raw in raws:
        if len(raw) >= 8:
            yield from (
                raw,
                raw.hex().encode(),
                base64.b64encode(raw).rstrip(b"="),
                base64.urlsafe_b64encode(raw).rstrip(b"="),
            )


async def dump_of_postgres(connection: Connection) -> bytes:
    tables = await connection.fetch("""
        SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
    """)
    lines = []
    for table in tables:
        rows = await connection.fetch(f"SELECT t::text FROM {table['name']} AS t")  # noqa: S608
        lines += [row[0] for row in rows]
    return "\n".join(lines).encode()


async def dump_of_valkey(url: str) -> bytes:
    found = []
    async with redis.asyncio.Redis.from_url(url) as client:
        async for key in client.scan_iter(count=1000):
            kind = (await client.type(key)).decode()
            read = {
                "string": client.get,
                "hash": client.hgetall,
                "list": lambda key: client.lrange(key, 0, -1),
                "set": client.smembers,
                "zset": lambda key: client.zrange(key, 0, -1),
                "stream": client.xrange,
            }[kind]
            found.append(key + b" " + repr(await read(key)).encode())
    return b"\n".join(found)


async def test_nothing_stored_or_logged_is_a_credential(
    live_server: LiveServer,
    live_worker: LiveWorker,
    processes: Processes,
    environment: dict[str, str],
    connection: Connection,
    redis_url: str,
) -> None:
    url = await live_server(APP_LOG_LEVEL="debug", APP_LOG_FORMAT="json")
    await live_worker()
    secrets = await use_everything(url, Mailbox(Path(environment["APP_DATA_DIR"]) / "mailbox"))
    assert len(secrets) == 43
    secrets["the installation's secret"] = environment["APP_SECRET_KEY"]
    keys = Keys(environment["APP_SECRET_KEY"])
    row = await connection.fetchrow("SELECT kid, private_sealed FROM identity.signing_keys WHERE state = 'active'")
    assert row is not None
    private = keys.decrypt("signing-key", row["private_sealed"], context=row["kid"].encode())
    secrets["the signing key"] = private.hex()
    secrets |= {f"the key for {name}": keys.derive(name).hex() for name in ("signing-key", "refresh-token", "totp")}

    # What is still on its way to the log comes out now.
    await processes.stop()
    places = {
        "Postgres": await dump_of_postgres(connection),
        "Valkey": await dump_of_valkey(redis_url),
        "the logs": processes.logged().encode(),
    }
    found = {
        (name, place)
        for name, secret in secrets.items()
        for place, text in places.items()
        for spelling in spellings(secret)
        if spelling in text
    }
    assert found == set()
    # The search finds what is there.
    assert b"ada@example.com" in places["Postgres"]
    assert b"identity:attempts:" in places["Valkey"]
    assert b"/v1/auth/mfa/verify" in places["the logs"]
    assert b"ada@example.com" not in places["the logs"] + places["Valkey"]
