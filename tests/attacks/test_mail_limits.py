"""Mail to people who did not ask for it: bounded by recipient and by sender, stopped by a ban and by a deletion."""

from collections import Counter
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.jobs.api import JOB_KINDS
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.post_office import PostOffice
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.test_invoices import INVOICE

# What a limit has put off waits for an hour; what waits for another job of the same person, for seconds.
DUE = "SELECT count(*) FROM jobs.jobs WHERE state < 2 AND run_at < now() + interval '1 minute'"


@pytest.fixture
def posting(settings: Settings, post_office: PostOffice) -> Settings:
    """The test's settings, with a mail server."""
    mail = settings.mail.model_copy(update={"smtp_url": SecretStr(f"smtp://127.0.0.1:{post_office.port}")})
    return settings.model_copy(update={"mail": mail})


async def make_sender(make_person: MakePerson, connection: Connection, *, proven: bool = True, **fields: str) -> Person:
    """A user without any job; with a verified address unless the test says otherwise."""
    person = await make_person(**fields)
    if proven:
        await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", person.id)
    await connection.execute("DELETE FROM jobs.jobs")
    return person


async def invoice(person: Person, number: str, to: str = "bystander@example.org") -> dict[str, Any]:
    customer = {"name": "Bystander", "email": to, "address": "x"}
    answer = await person.post("/v1/invoices", json=INVOICE | {"number": number, "customer": customer})
    assert answer.status_code == 202, answer.text
    issued: dict[str, Any] = answer.json()["invoice"]
    return issued


async def until_idle(connection: Connection) -> None:
    """Until no job is due."""

    async def is_idle() -> bool:
        return bool(await connection.fetchval(DUE) == 0)

    await eventually(is_idle, within=60)


def recipients(post_office: PostOffice) -> Counter[str]:
    return Counter(address for envelope in post_office.received for address in envelope.rcpt_tos)


async def outcomes(connection: Connection) -> Counter[str]:
    rows = await connection.fetch("""
        SELECT COALESCE(result #>> '{email,reason}', result #>> '{email,state}', 'waiting') AS outcome
        FROM jobs.jobs WHERE kind = 'invoice.email'
    """)
    return Counter(row["outcome"] for row in rows)


async def test_an_unproven_account_sends_no_invoice_not_even_to_its_own_address(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    # An account can be registered with the address of a bystander.
    person = await make_sender(make_person, connection, proven=False, email="Ada@example.com")
    withheld = await invoice(person, "1")
    to_itself = await invoice(person, "2", "ada@EXAMPLE.com")
    async with open_worker(posting, JOB_KINDS):
        await until_idle(connection)
        assert post_office.arrived == []
        assert await outcomes(connection) == Counter({"email_not_verified": 2})
        url = f"/v1/invoices/{withheld['id']}"
        assert (await person.get(url)).json()["status"] == "issued"
        assert (await person.get(f"{url}/pdf")).status_code == 200
        for issued in (withheld, to_itself):
            refused = await person.post(f"/v1/invoices/{issued['id']}/email")
            assert (refused.status_code, refused.json()["code"]) == (403, "email_not_verified")

        # Once the address is verified, its owner decides what of all this is sent.
        await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", person.id)
        sent = await person.post(f"{url}/email")
        assert sent.status_code == 202, sent.text
        job = (await person.get(sent.headers["location"], headers={"Prefer": "wait=20"})).json()
        assert job["result"] == {"invoice_id": withheld["id"], "email": {"state": "sent"}}
        assert (await person.get(url)).json()["status"] == "sent"
    assert recipients(post_office) == Counter(["bystander@example.org"])


async def test_what_was_handed_over_is_sent_whatever_is_cancelled(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    sender = await make_sender(make_person, connection)
    issued = await invoice(sender, "1")
    post_office.is_open.clear()
    async with open_worker(posting, JOB_KINDS):
        await eventually(lambda: post_office.arrived == ["bystander@example.org"])
        job_id = await connection.fetchval("SELECT id FROM jobs.jobs WHERE kind = 'invoice.email'")
        assert await connection.fetchval("SELECT count(*) FROM jobs.mail_sends") == 1
        assert (await sender.post(f"/v1/jobs/{job_id}/cancel")).status_code == 202
        assert (await sender.post(f"/v1/jobs/{job_id}/cancel")).status_code == 202
        assert (await sender.post(f"/v1/jobs/{job_id}/retry")).status_code == 409
        post_office.is_open.set()
        job = (await sender.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=20"})).json()
        assert (job["state"], job["result"]["email"]) == ("succeeded", {"state": "sent"})
        assert (await sender.post(f"/v1/jobs/{job_id}/retry")).status_code == 409
        assert (await sender.get(f"/v1/invoices/{issued['id']}")).json()["status"] == "sent"
    assert post_office.arrived == ["bystander@example.org"]


async def test_each_hand_over_counts_that_its_owner_asks_for(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    mail = posting.mail.model_copy(update={"recipient_hourly": 4})
    sender = await make_sender(make_person, connection)
    await invoice(sender, "1")
    # One that is refused for good, and one that is cancelled while it waits for the next attempt.
    post_office.answers = ["554 looks like spam", "451 try later"]
    async with open_worker(posting.model_copy(update={"mail": mail}), JOB_KINDS):
        for count, state in ((1, "failed"), (2, "retrying"), (2, "scheduled")):

            async def is_over(state: str = state) -> bool:
                page = (await sender.get("/v1/jobs?kind=invoice.email")).json()
                return [job["state"] for job in page["items"]] == [state]

            await eventually(is_over)
            assert len(post_office.arrived) == count
            assert await connection.fetchval("SELECT count(*) FROM jobs.mail_sends") == count
            if state != "scheduled":
                job_id = (await sender.get("/v1/jobs?kind=invoice.email")).json()["items"][0]["id"]
                if state == "retrying":
                    assert (await sender.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
                assert (await sender.post(f"/v1/jobs/{job_id}/retry")).status_code == 202
    assert post_office.received == []


async def test_so_many_invoices_an_hour_go_to_one_mailbox_from_all_senders(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    mail = posting.mail.model_copy(update={"recipient_hourly": 4})
    senders = [await make_sender(make_person, connection) for _ in range(5)]
    spellings = ["bystander@example.org", "Bystander@EXAMPLE.org", "bystander+a@example.org", "bystander+b@example.org"]
    for number in range(12):
        await invoice(senders[number % 5], f"{number}", spellings[number % 4])
    async with open_worker(posting.model_copy(update={"mail": mail}), JOB_KINDS):
        await until_idle(connection)
    assert sum(recipients(post_office).values()) == 4
    assert await outcomes(connection) == Counter({"sent": 4, "waiting": 8})
    # The others look again once the first of the hour's messages counts no more, and not all at once.
    rows = await connection.fetch(
        "SELECT extract(epoch FROM run_at - now())::float8 AS seconds FROM jobs.jobs WHERE state = 0"
    )
    assert all(3_500 < row["seconds"] < 3_600 + 60 + 450 for row in rows)
    assert len({row["seconds"] for row in rows}) == 8
    assert await connection.fetchval("SELECT max(attempt) FROM jobs.jobs WHERE state = 0") == 0


async def test_no_sender_uses_up_what_others_may_send_to_a_customer(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    attacker, seller = [await make_sender(make_person, connection) for _ in range(2)]
    for number in range(14):
        await invoice(attacker, f"{number}")
    async with open_worker(posting, JOB_KINDS):
        await until_idle(connection)
        assert await outcomes(connection) == Counter({"sent": 5, "waiting": 9})
        # What waits reserves nothing, whether it is cancelled or not.
        await invoice(seller, "1")
        await invoice(seller, "2")
        await until_idle(connection)
        rows = await connection.fetch("""
            SELECT user_id, count(*) FILTER (WHERE state = 2) AS sent FROM jobs.jobs
            WHERE kind = 'invoice.email' GROUP BY user_id
        """)
        assert {str(row["user_id"]): row["sent"] for row in rows} == {str(attacker.id): 5, str(seller.id): 2}
    assert await connection.fetchval("SELECT count(*) FROM jobs.mail_sends WHERE purpose = 'invoice'") == 7


async def test_two_workers_do_not_send_one_more(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    sender = await make_sender(make_person, connection)
    for number in range(20):
        await invoice(sender, f"{number}")
    async with open_worker(posting, JOB_KINDS), open_worker(posting, JOB_KINDS):
        await until_idle(connection)
    assert recipients(post_office) == Counter({"bystander@example.org": 5})


async def test_one_account_sends_so_many_an_hour(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    mail = posting.mail.model_copy(update={"sender_hourly": 5})
    sender, other = [await make_sender(make_person, connection) for _ in range(2)]
    for number in range(8):
        await invoice(sender, f"{number}", f"bystander{number}@example.org")
    await invoice(other, "1", "bystander0@example.org")
    async with open_worker(posting.model_copy(update={"mail": mail}), JOB_KINDS):
        await until_idle(connection)
    assert sum(recipients(post_office).values()) == 6
    assert await outcomes(connection) == Counter({"sent": 6, "waiting": 3})


async def test_what_has_waited_for_four_days_is_withheld(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    mail = posting.mail.model_copy(update={"recipient_hourly": 1})
    sender = await make_sender(make_person, connection)
    for number in range(4):
        await invoice(sender, f"{number}")
    async with open_worker(posting.model_copy(update={"mail": mail}), JOB_KINDS):
        await until_idle(connection)
        assert await outcomes(connection) == Counter({"sent": 1, "waiting": 3})
        await connection.execute("""
            UPDATE jobs.jobs SET run_at = now(), is_due = true, created_at = now() - interval '95 hours 30 minutes'
            WHERE id IN (SELECT id FROM jobs.jobs WHERE kind = 'invoice.email' AND state = 0 ORDER BY id LIMIT 2)
        """)
        await until_idle(connection)
    assert await outcomes(connection) == Counter({"sent": 1, "waiting": 1, "too_many_messages": 2})
    assert recipients(post_office) == Counter({"bystander@example.org": 1})


async def test_invoices_leave_room_for_what_a_person_asks_for(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    posting: Settings,
    post_office: PostOffice,
    connection: Connection,
) -> None:
    victim = await make_sender(make_person, connection, email="victim@example.org")
    sender = await make_sender(make_person, connection)
    for number in range(15):
        await invoice(sender, f"{number}", victim.email)
    async with open_worker(posting, JOB_KINDS):
        await until_idle(connection)
        assert recipients(post_office) == Counter({victim.email: 5})
        await client.post("/v1/auth/password/forgot", json={"email": victim.email})
        await eventually(lambda: recipients(post_office)[victim.email] == 6)


async def test_many_notices_of_one_kind_keep_back_no_other(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    mail = posting.mail.model_copy(update={"recipient_hourly": 1})
    victim = await make_sender(make_person, connection, email="victim@example.org")

    async def make_key() -> None:
        answer = await victim.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})
        assert answer.status_code == 201, answer.text

    async with open_worker(posting.model_copy(update={"mail": mail}), JOB_KINDS):
        await make_key()
        await eventually(lambda: len(post_office.received) == 1)
        await until_idle(connection)
        for _ in range(5):
            await make_key()
        body = {"current_password": PASSWORD, "new_password": "another battery staple"}
        assert (await victim.post("/v1/auth/password/change", json=body)).status_code in {200, 204}
        await eventually(lambda: len(post_office.received) == 2)
        await until_idle(connection)
    subjects = [line for content in post_office.contents for line in content.split(b"\r\n") if b"Subject:" in line]
    assert subjects == [b"Subject: An API key was created", b"Subject: Your password was changed"]
    waiting = await connection.fetch("""
        SELECT args->>'notice' AS notice FROM jobs.jobs WHERE kind = 'identity.mail_notice' AND state = 0
    """)
    assert [row["notice"] for row in waiting] == ["api_key_created"]


async def test_each_purpose_has_slots_that_come_back_when_its_links_end(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    posting: Settings,
    post_office: PostOffice,
    connection: Connection,
) -> None:
    victim = await make_sender(make_person, connection, proven=False, email="victim@example.org")
    for _ in range(6):
        await client.post("/v1/auth/password/forgot", json={"email": victim.email})
        await client.post("/v1/auth/email/resend", json={"email": "VICTIM@example.org"})
    # As if the counters of Redis had been lost meanwhile: the worker counts for itself.
    await connection.execute("""
        INSERT INTO jobs.jobs (id, kind, lane, args)
        SELECT gen_random_uuid(), kind, lane, args FROM jobs.jobs WHERE kind LIKE 'identity.mail_%'
    """)
    async with open_worker(posting, JOB_KINDS):
        await until_idle(connection)
    assert recipients(post_office) == Counter({victim.email: 15})
    # Of links that reset a password, which are good for half an hour, five in half an hour.
    rows = await connection.fetch("SELECT purpose, count(*) FROM jobs.mail_sends GROUP BY purpose ORDER BY purpose")
    assert [tuple(row) for row in rows] == [("reset", 5), ("verification", 10)]


async def ban(connection: Connection, person: Person) -> None:
    await connection.execute("UPDATE identity.accounts SET status = 'banned' WHERE user_id = $1", person.id)


async def close(_: Connection, person: Person) -> None:
    answer = await person.delete("/v1/users/me", json={"current_password": PASSWORD})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("end", [ban, close])
async def test_the_end_of_an_account_stops_what_is_queued(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    posting: Settings,
    post_office: PostOffice,
    connection: Connection,
    end: Any,
) -> None:
    person = await make_sender(make_person, connection, email="sender@example.com")
    await connection.execute("UPDATE users.users SET email_verified = true WHERE id = $1", person.id)
    for number in range(5):
        await invoice(person, f"{number}", f"bystander{number}@example.org")
    await client.post("/v1/auth/password/forgot", json={"email": person.email})
    await person.post("/v1/auth/email/change", json={"new_email": "new@example.com", "current_password": PASSWORD})
    await connection.execute(
        """
        INSERT INTO jobs.jobs (id, kind, lane, args)
        SELECT gen_random_uuid(), 'identity.mail_notice', 'critical',
               jsonb_build_object('user_id', $1::text, 'notice', notice, 'email', email)
        FROM (VALUES ('password_changed', NULL), ('email_changed', 'old@example.com'), ('totp_enabled', NULL))
             AS t(notice, email)
        """,
        str(person.id),
    )
    await end(connection, person)
    async with open_worker(posting, JOB_KINDS):
        await until_idle(connection)
    # A ban by SQL alone reaches the e-mails; with the end of an account its jobs end before they make any.
    cancelled = await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE error->>'code' = 'account_deleted'")
    expected = (Counter(), 5) if end is close else (Counter({"account_inactive": 5}), 0)
    assert (await outcomes(connection), cancelled) == expected
    # That it was closed is the last message about an account.
    assert recipients(post_office) == Counter([person.email] if end is close else [])


async def test_a_message_that_is_tried_again_counts_once(
    make_person: MakePerson, posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    sender = await make_sender(make_person, connection)
    await invoice(sender, "1")
    post_office.answers = ["451 try later"] * 3
    async with open_worker(posting, JOB_KINDS):

        async def has_been_sent() -> bool:
            await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE kind = 'invoice.email' AND state = 0")
            return await outcomes(connection) == Counter(["sent"])

        await eventually(has_been_sent, within=60)
    assert await connection.fetchval("SELECT count(*) FROM jobs.mail_sends WHERE purpose = 'invoice'") == 1
