"""Trouble of the mail server, a recipient that is declined for now, and many messages of one account delay no more."""

import asyncio
from uuid import UUID

import pytest
from pydantic import SecretStr

from app.jobs.api import JOB_KINDS
from app.jobs.records import POSTPONED_AT_MOST
from app.kernel.clock import SystemClock
from app.kernel.ids import UserId
from app.kernel.mail import Mail, Mailer, MailPurpose
from app.kernel.mail.smtp import SmtpTransport
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.post_office import PostOffice
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

LETTER = {"to": "ada@example.org", "subject": "s", "text": "t", "html": "h"}
DUE_AGAIN = """
UPDATE jobs.jobs SET run_at = now(), is_due = true, created_at = created_at - make_interval(secs => $1)
WHERE kind = 'email.send' AND state = 0 AND run_at > now()
"""


@pytest.fixture
def posting(settings: Settings, post_office: PostOffice) -> Settings:
    """The test's settings, with a mail server."""
    mail = settings.mail.model_copy(update={"smtp_url": SecretStr(f"smtp://127.0.0.1:{post_office.port}")})
    return settings.model_copy(update={"mail": mail})


async def enqueue(worker: Worker) -> None:
    """One message whose first attempt is its last."""
    async with worker.db.statement("test.email") as tx:
        await worker.queue.enqueue(tx, "email.send", LETTER, user_id=None, max_attempts=1)


async def until_due_again(connection: Connection, seconds_older: float = 0.0) -> None:
    async def is_waiting() -> bool:
        return await connection.execute(DUE_AGAIN, seconds_older) == "UPDATE 1"

    await eventually(is_waiting)


async def until_sent(connection: Connection, count: int) -> None:
    """Until so many jobs have succeeded with their first attempt."""

    async def is_sent() -> bool:
        query = "SELECT count(*) FROM jobs.jobs WHERE kind = 'email.send' AND state = 2 AND attempt = 1"
        return bool(await connection.fetchval(query) == count)

    await eventually(is_sent)


async def test_trouble_of_the_server_itself_is_no_attempt(
    posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.answers = ["452 4.3.1 disk full", "451 4.4.1 no route", "421 going down", "452 no storage"]
    async with open_worker(posting, JOB_KINDS) as worker:
        await enqueue(worker)
        for _ in range(4):
            await until_due_again(connection)
        await until_sent(connection, 1)
        # It hangs up when it has the message.
        post_office.is_open.clear()
        await enqueue(worker)
        await eventually(lambda: len(post_office.arrived) == 6)
        post_office.drop_all()
        post_office.is_open.set()
        await until_due_again(connection)
        await eventually(lambda: post_office.arrived[6:] == ["ada@example.org"])
        await until_sent(connection, 2)
    # What it has declined is counted once with what follows; what it may have taken counts.
    assert await connection.fetchval("SELECT count(*) FROM jobs.mail_sends") == 3
    assert await connection.fetchval("SELECT count(*) FROM jobs.attempts") == 0


async def test_a_recipient_that_is_declined_for_now_is_tried_for_days(
    posting: Settings, post_office: PostOffice, connection: Connection
) -> None:
    post_office.rcpt = "450 4.2.1 mailbox busy"
    async with open_worker(posting, JOB_KINDS) as worker:
        await enqueue(worker)
        await until_due_again(connection)
        await until_due_again(connection, POSTPONED_AT_MOST)

        async def has_failed() -> bool:
            code = await connection.fetchval("SELECT error ->> 'code' FROM jobs.jobs WHERE state = 3")
            return bool(code == "mail_unavailable")

        await eventually(has_failed)
    assert await connection.fetchval("SELECT count(*) FROM jobs.attempts WHERE outcome = 'retried'") == 2


async def test_the_invoices_of_an_account_leave_connections_to_others(
    posting: Settings, post_office: PostOffice
) -> None:
    flood, other = UserId(UUID(int=1)), UserId(UUID(int=2))
    post_office.is_open.clear()
    mailer = Mailer(posting.mail, SmtpTransport(posting.mail), SystemClock())

    def send(to: str, purpose: MailPurpose, account: UserId) -> "asyncio.Task[None]":
        mail = Mail(f"{to}@example.org", "s", "t", "<p>t</p>", "reference", purpose=purpose, account=account)
        return asyncio.create_task(mailer.send(mail))

    flooding = [send("flood", "invoice", flood) for _ in range(12)]
    await eventually(lambda: len(post_office.arrived) == 2)
    sending = [send("other", "invoice", other)]
    await eventually(lambda: len(post_office.arrived) == 3)
    # Neither waits for invoices: not those of the same account either.
    sending.append(send("reset", "reset", flood))
    await eventually(lambda: len(post_office.arrived) == 4)
    assert post_office.arrived == [f"{name}@example.org" for name in ("flood", "flood", "other", "reset")]

    # What waits for a connection can be cancelled, and nothing of it is sent.
    for task in flooding:
        task.cancel()
    await asyncio.wait(flooding)
    post_office.is_open.set()
    await asyncio.gather(*sending, send("after", "invoice", other))
    assert post_office.arrived[4:] == ["after@example.org"]
    await mailer.close()
