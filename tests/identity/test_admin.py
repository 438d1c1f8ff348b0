"""Administration, and the end of an account: effective at once, noted, and never without an administrator left."""

import asyncio
from collections import Counter
from datetime import timedelta
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from app.identity.schemas.accounts import PurgeResponse
from app.identity.schemas.admin import AdminAccountPage, AdminAccountResponse
from app.identity.schemas.sessions import SecurityEventPage
from app.worker import Worker
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_api_keys import bearer, make_key

USERS = "/v1/admin/users"


async def found(admin: Person, **params: object) -> list[str]:
    page = body_of(await admin.get(USERS, params=params), AdminAccountPage)
    return [item["email"] for item in page["items"]]


async def test_search(admin: Person, make_person: MakePerson) -> None:
    for email in ("ada@example.com", "a_b@example.com", "a%b@example.com", "axb@example.org", "Zo\u00eb@example.com"):
        await make_person(email=email)
    assert await found(admin, q="a_b") == ["a_b@example.com"]
    assert await found(admin, q="a%b") == ["a%b@example.com"]
    assert await found(admin, q="%") == ["a%b@example.com"]
    assert await found(admin, q="\\") == []
    assert await found(admin, q="EXAMPLE.org") == ["axb@example.org"]
    assert await found(admin, q="ZOE\u0308") == ["Zo\u00eb@example.com"]
    assert await found(admin, q="' OR 1=1 --") == []
    assert await found(admin, role="admin") == ["admin@example.com"]
    assert len(await found(admin, status="active")) == 6
    assert await found(admin, status="banned") == []
    for wrong in ({"q": ""}, {"role": "root"}, {"limit": 0}, {"limit": 101}, {"sort": "x"}, {"q": "a\0"}):
        assert (await admin.get(USERS, params=wrong)).status_code == 422


async def test_search_uses_its_index(connection: Connection, client: httpx.AsyncClient) -> None:
    await connection.execute("""
        INSERT INTO identity.accounts (user_id, email, email_canonical)
        SELECT gen_random_uuid(), e, e
          FROM (SELECT 'person' || n || '@example.com' AS e FROM generate_series(1, 20000) AS n) AS addresses
    """)
    await connection.execute("VACUUM ANALYZE identity.accounts")
    plan = await connection.fetch(
        "EXPLAIN SELECT user_id FROM identity.accounts WHERE email_canonical LIKE '%son12345@%' ORDER BY user_id"
    )
    assert "accounts_email_trgm_idx" in "\n".join(row[0] for row in plan)


async def test_pages(admin: Person, make_person: MakePerson) -> None:
    people = [await make_person() for _ in range(4)]
    emails: list[str] = []
    cursor = None
    for _ in range(3):
        page = body_of(
            await admin.get(USERS, params={"limit": 2} | ({"cursor": cursor} if cursor else {})), AdminAccountPage
        )
        emails += [item["email"] for item in page["items"]]
        cursor = page["next_cursor"]
        # A new user does not shift the pages.
        await make_person()
    assert emails == [person.email for person in reversed(people)] + [admin.email]
    assert cursor is None
    first = (await admin.get(USERS, params={"limit": 2})).json()["next_cursor"]
    for wrong in (first[:-1], first + "A", "x"):
        problem_of(await admin.get(USERS, params={"cursor": wrong}), 400, "invalid_cursor")
    # A cursor belongs to the list it came from.
    problem_of(await admin.get(USERS, params={"cursor": first, "role": "user"}), 400, "invalid_cursor")
    problem_of(await admin.get(f"{USERS}/{admin.id}/security-events", params={"cursor": first}), 400, "invalid_cursor")


async def test_a_role_is_given_and_taken_at_once(person: Person, admin: Person, log_in: LogIn) -> None:
    url = f"{USERS}/{person.id}"
    assert body_of(await admin.patch(url, json={"role": "admin"}), AdminAccountResponse)["role"] == "admin"
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")
    promoted = await log_in(person)
    assert (await promoted.get(USERS)).status_code == 200
    await admin.patch(url, json={"role": "user"})
    problem_of(await promoted.get(USERS), 401, "token_revoked")
    problem_of(await (await log_in(person)).get(USERS), 403, "insufficient_scope")


async def test_the_last_administrator_stays(
    client: httpx.AsyncClient, admin: Person, person: Person, log_in: LogIn, connection: Connection
) -> None:
    own = f"{USERS}/{admin.id}"
    problem_of(await admin.patch(own, json={"role": "user"}), 409, "last_admin")
    problem_of(await admin.post(f"{own}/ban"), 409, "own_account")
    problem_of(await admin.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD}), 409, "last_admin")
    # A banned administrator does not count.
    await admin.patch(f"{USERS}/{person.id}", json={"role": "admin"})
    await admin.post(f"{USERS}/{person.id}/ban")
    problem_of(await admin.patch(own, json={"role": "user"}), 409, "last_admin")
    assert await connection.fetchval("SELECT role FROM identity.accounts WHERE user_id = $1", admin.id) == "admin"


async def test_a_program_is_made_no_administrator(admin: Person, connection: Connection) -> None:
    program = {"name": "billing", "scopes": ["introspect"]}
    made = (await admin.post("/v1/admin/service-accounts", json=program)).json()
    url, own = f"{USERS}/{made['id']}", f"{USERS}/{admin.id}"
    problem_of(await admin.patch(url, json={"role": "admin"}), 409, "service_account_role")
    accounts = "SELECT role, version FROM identity.accounts WHERE user_id::text = $1"
    assert tuple(await connection.fetchrow(accounts, made["id"]) or ()) == ("user", 1)
    assert await connection.fetchval("SELECT count(*) FROM identity.security_events WHERE action = 'role_changed'") == 0
    # One that became an administrator before does not count as the one that stays, and can be demoted.
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id::text = $1", made["id"])
    problem_of(await admin.patch(own, json={"role": "user"}), 409, "last_admin")
    problem_of(await admin.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD}), 409, "last_admin")
    assert (await admin.patch(url, json={"role": "user"})).json()["role"] == "user"


async def test_two_administrators_cannot_depose_each_other(
    admin: Person, make_person: MakePerson, log_in: LogIn, connection: Connection
) -> None:
    for _ in range(5):
        other = await make_person()
        await admin.patch(f"{USERS}/{other.id}", json={"role": "admin"})
        other = await log_in(other)
        answers = await asyncio.gather(
            admin.patch(f"{USERS}/{other.id}", json={"role": "user"}),
            other.patch(f"{USERS}/{admin.id}", json={"role": "user"}),
        )
        # The loser is refused as the last one, or because their own token ended before.
        assert Counter(answer.status_code for answer in answers)[200] == 1
        left = await connection.fetch("SELECT user_id FROM identity.accounts WHERE role = 'admin'")
        assert len(left) == 1
        await connection.execute(
            "UPDATE identity.accounts SET role = CASE user_id WHEN $1 THEN 'admin' ELSE 'user' END", admin.id
        )
        admin = await log_in(admin)


async def test_a_ban_and_its_end(
    client: httpx.AsyncClient, person: Person, admin: Person, log_in: LogIn, mailbox: Mailbox
) -> None:
    url = f"{USERS}/{person.id}"
    assert (await admin.post(f"{url}/ban", json={"reason": "spam"})).status_code == 204
    account = (await admin.get(url)).json()
    assert (account["status"], account["ban_reason"]) == ("banned", "spam")
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    problem_of(answer, 401, "invalid_refresh_token")
    assert (await admin.get(f"{url}/sessions")).json()["items"] == []
    assert (await admin.post(f"{url}/unban")).status_code == 204
    # The old session does not come back; a new one can be opened.
    problem_of(await person.get("/v1/users/me"), 401, "token_revoked")
    assert (await (await log_in(person)).get("/v1/users/me")).status_code == 200
    trail = body_of(await admin.get(f"{url}/security-events"), SecurityEventPage)["items"]
    assert [(item["action"], item["actor_id"] == str(admin.id)) for item in trail] == [
        ("logged_in", False),
        ("unbanned", True),
        ("banned", True),
        ("registered", False),
    ]


async def test_sessions_of_others(person: Person, admin: Person, log_in: LogIn) -> None:
    url = f"{USERS}/{person.id}/sessions"
    other = await log_in(person)
    listed = await admin.get(url)
    assert [item["current"] for item in listed.json()["items"]] == [False, False]
    assert (await admin.delete(url)).json() == {"revoked": 2}
    for each in (person, other):
        problem_of(await each.get("/v1/users/me"), 401, "token_revoked")
    assert (await admin.get("/v1/users/me")).status_code == 200


async def test_who_is_not_there(admin: Person) -> None:
    url = f"{USERS}/{uuid4()}"
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"role": "admin"}),
        ("POST", "/ban", {}),
        ("POST", "/unban", None),
        ("GET", "/sessions", None),
        ("DELETE", "/sessions", None),
        ("GET", "/security-events", None),
    ):
        problem_of(await admin.request(method, url + path, json=body), 404, "account_not_found")
    problem_of(await admin.get(f"{USERS}/{quote('../../x', safe='')}"), 400, "ambiguous_path")


async def test_deletion_closes_the_account_at_once(
    clock: ManualClock, client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn
) -> None:
    person = await make_person(email="ada@example.com")
    other, key = await log_in(person), await make_key(person, "profile:read")
    wrong = {"current_password": "not it at all"}
    problem_of(await person.request("DELETE", "/v1/users/me", json=wrong), 403, "invalid_current_password")
    answer = await person.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD})
    purge_at = (clock.now() + timedelta(days=14)).isoformat().replace("+00:00", "Z")
    assert body_of(answer, PurgeResponse, 202) == {"purge_at": purge_at}
    for each in (person, other):
        problem_of(await each.get("/v1/users/me"), 401, "token_revoked")
    problem_of(await client.get("/v1/users/me", headers=bearer(key)), 401, "invalid_token")
    login = {"email": "ada@example.com", "password": PASSWORD}
    problem_of(await client.post("/v1/auth/login", json=login), 401, "invalid_credentials")
    await mailbox.letter("ada@example.com", "Your account was closed")
    # A user need not wait for the purge to come back under the same address.
    again = await make_person(email="ada@example.com")
    assert again.id != person.id
    problem_of(await again.get(f"/v1/users/{person.id}"), 404, "user_not_found")


@pytest.mark.settings(APP_IDENTITY_DELETION_GRACE="0")
async def test_the_purge_leaves_nothing_of_the_person(
    client: httpx.AsyncClient, make_person: MakePerson, connection: Connection, worker: Worker
) -> None:
    person = await make_person(email="ada.lovelace@example.com", display_name="Countess Ada")
    stays = await make_person(email="charles@example.com")
    for each in (person, stays):
        await each.post("/v1/events", json={"kind": "a", "properties": {"note": "of Ada"}})
        await make_key(each, "profile:read", name="laptop of Ada")
        await each.patch("/v1/users/me", json={"bio": "Countess of Lovelace"})
        await each.post("/v1/webhooks/endpoints", json={"url": "https://ada.example/hook", "event_types": ["*"]})
    await person.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD})

    async def is_purged() -> bool:
        return bool(
            await connection.fetchval("SELECT email = 'deleted' FROM identity.accounts WHERE user_id = $1", person.id)
        )

    await eventually(is_purged)
    tables = await connection.fetch("""
        SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.columns
         WHERE column_name = 'user_id' AND table_schema IN ('identity', 'users')
    """)
    left = {}
    for table in tables:
        rows = await connection.fetch(f"SELECT t::text FROM {table['name']} AS t WHERE user_id = $1", person.id)  # noqa: S608
        left[table["name"]] = len(rows)
        assert not [row for row in rows if "ovelace" in row[0] or "Ada" in row[0] or "127.0.0.1" in row[0]], table
    assert left["identity.accounts"] == 1
    assert [left[f"identity.{name}"] for name in ("sessions", "api_keys", "one_time_tokens")] == [0, 0, 0]
    assert left["identity.security_events"] > 0
    assert await connection.fetchval("SELECT array_agg(user_id) FROM jobs.webhook_endpoints") == [stays.id]
    assert (await stays.get("/v1/users/me")).json()["bio"] == "Countess of Lovelace"
    assert len((await stays.get("/v1/users/me/events")).json()["items"]) == 1


async def test_entries_of_all_trails_are_found(
    admin: Person, person: Person, connection: Connection, client: httpx.AsyncClient
) -> None:
    await connection.execute("DELETE FROM identity.security_events")
    await connection.execute(
        """
        INSERT INTO identity.security_events (user_id, id, action, created_at)
        SELECT CASE WHEN n % 2 = 0 THEN $1::uuid ELSE $2::uuid END,
               ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
               CASE WHEN n <= 2 THEN 'banned' ELSE 'logged_in' END, '2026-01-01'::timestamptz + make_interval(mins => n)
        FROM generate_series(0, 4500) AS n
        """,
        *(person.id, admin.id),
    )

    async def listed(query: str, most: int = 1000) -> list[int]:
        numbers: list[int] = []
        cursor: str | None = ""
        while cursor is not None and len(numbers) < most:
            path = f"/v1/admin/security-events?limit=100&{query}" + (f"&cursor={cursor}" if cursor else "")
            page = (await admin.get(path)).json()
            # The administrator's own reading is noted too.
            items = [item for item in page["items"] if item["action"] != "admin_read"]
            assert all(
                item["user_id"] == str((person if int(item["id"][-4:], 16) % 2 == 0 else admin).id) for item in items
            )
            numbers += [int(item["id"][-4:], 16) for item in items]
            cursor = page["next_cursor"]
        return numbers

    assert (await listed("", 150))[:150] == list(range(4500, 4350, -1))
    assert await listed("type=banned") == [2, 1, 0]
    assert await listed(f"type=banned&user_id={person.id}") == [2, 0]
    assert await listed(f"user_id={person.id}&since=2026-01-04T00:00:00Z") == [4500 - 2 * n for n in range(91)]
    assert await listed("since=2026-01-04T02:58:00Z") == [4500, 4499, 4498]
    assert await listed("since=2026-01-04T02:58:00Z&type=banned") == []
    problem_of(await person.get("/v1/admin/security-events"), 403, "insufficient_scope")
    for wrong in ("type=", "since=x", "user_id=1", "cursor=x"):
        assert (await admin.get(f"/v1/admin/security-events?{wrong}")).status_code in (400, 422)
