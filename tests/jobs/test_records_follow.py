"""What a job was to make follows its job: an invoice or a delivery never waits for a job that is over."""

from email import message_from_bytes, policy
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.jobs.api import JOB_KINDS
from app.kernel.mail.dev_mailbox import MailboxTransport
from app.kernel.mail.message import MailUnavailable
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.jobs.receiver import LOCAL, Receiver, register
from tests.jobs.test_invoices import INVOICE

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def _invoice(person: Person) -> tuple[str, str]:
    """The id of an invoice that no worker makes, and of its job."""
    made = (await person.post("/v1/invoices", json=INVOICE)).json()
    return made["invoice"]["id"], made["job"]["id"]


async def _status(person: Person, invoice: str) -> Any:
    return (await person.get(f"/v1/invoices/{invoice}")).json()["status"]


async def _delivery(person: Person) -> tuple[str, str | None]:
    (delivery,) = (await person.get("/v1/webhooks/deliveries")).json()["items"]
    return delivery["state"], delivery["last_error"]


async def test_an_invoice_whose_job_is_cancelled_has_failed_until_it_is_started_over(person: Person) -> None:
    invoice, job = await _invoice(person)
    assert await _status(person, invoice) == "pending"
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    assert await _status(person, invoice) == "failed"
    assert (await person.post(f"/v1/jobs/{job}/retry")).status_code == 202
    assert await _status(person, invoice) == "pending"


async def test_the_mail_of_an_invoice_whose_job_made_no_file_carries_one(
    person: Person, connection: Connection, settings: Settings
) -> None:
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now()")
    await connection.execute("DELETE FROM jobs.jobs")
    invoice, job = await _invoice(person)
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    url = f"/v1/invoices/{invoice}"
    async with open_worker(settings, JOB_KINDS):
        asked = await person.post(f"{url}/email")
        assert asked.status_code == 202
        mailed = (await person.get(asked.headers["location"], headers={"Prefer": "wait=25"})).json()
    assert mailed["result"] == {"invoice_id": invoice, "email": {"state": "sent"}}
    (kept,) = (settings.data_dir / "mailbox").glob("*.eml")
    (attachment,) = message_from_bytes(kept.read_bytes(), policy=policy.default).iter_attachments()
    assert attachment.get_content() == (await person.get(f"{url}/pdf")).content


@LOCAL
async def test_a_delivery_whose_job_is_cancelled_has_failed_and_can_be_redelivered(
    person: Person, receiver: Receiver, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    tested = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).json()
    job = await connection.fetchval("SELECT id FROM jobs.jobs WHERE kind = 'webhook.deliver'")
    assert await _delivery(person) == ("pending", None)
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    assert await _delivery(person) == ("failed", "cancelled")
    assert (await person.post(f"/v1/jobs/{job}/retry")).status_code == 202
    assert await _delivery(person) == ("pending", None)
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    assert (await person.post(f"/v1/webhooks/deliveries/{tested['id']}/redeliver")).status_code == 202
    assert await _delivery(person) == ("pending", "cancelled")


@pytest.mark.parametrize(("state", "status"), [(2, "pending"), (3, "failed"), (4, "failed")])
async def test_however_the_job_ends_its_invoice_follows(
    person: Person, connection: Connection, state: int, status: str
) -> None:
    invoice, job = await _invoice(person)
    await connection.execute("UPDATE jobs.jobs SET state = 1, run_token = id, lease_until = now() WHERE id = $1", job)
    assert await _status(person, invoice) == "pending"
    await connection.execute(
        "UPDATE jobs.jobs SET state = $2, finished_at = now(), run_token = NULL, lease_until = NULL WHERE id = $1",
        job,
        state,
    )
    # A job that succeeds writes what it has made by itself.
    assert await _status(person, invoice) == status


async def test_what_is_made_already_stays(person: Person, connection: Connection) -> None:
    invoice, job = await _invoice(person)
    await connection.execute("UPDATE jobs.invoices SET status = 'sent'")
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    assert await _status(person, invoice) == "sent"


@pytest.mark.parametrize(("state", "status"), [(3, "failed"), (4, "issued")])
async def test_however_the_mail_of_an_invoice_fails_the_invoice_has_failed_until_it_is_started_over(
    proven: Person, connection: Connection, state: int, status: str
) -> None:
    """Also where no handler could say so: out of attempts, with its worker lost, after days of an outage."""
    invoice, _ = await _invoice(proven)
    await connection.execute("UPDATE jobs.invoices SET status = 'issued'")
    job = (await proven.post(f"/v1/invoices/{invoice}/email")).json()["id"]
    await connection.execute("UPDATE jobs.jobs SET state = $2, finished_at = now() WHERE id = $1", job, state)
    assert await _status(proven, invoice) == status
    assert (await proven.post(f"/v1/jobs/{job}/retry")).status_code == 202
    assert await _status(proven, invoice) == "issued"


async def test_mail_that_the_server_does_not_take_in_time_fails_its_invoice(
    proven: Person, connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_full(*_: object) -> None:
        raise MailUnavailable("SMTP 450", took_nothing=True)

    monkeypatch.setattr(MailboxTransport, "send", is_full)
    invoice, _ = await _invoice(proven)
    await connection.execute("UPDATE jobs.invoices SET status = 'issued'")
    job = (await proven.post(f"/v1/invoices/{invoice}/email")).json()["id"]
    await connection.execute(
        "UPDATE jobs.jobs SET attempt = max_attempts - 1, created_at = now() - interval '10 days' WHERE id = $1", job
    )
    async with open_worker(settings, JOB_KINDS):
        ended = (await proven.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=25"})).json()
    assert (ended["state"], ended["error"]["code"]) == ("failed", "mail_unavailable")
    assert await _status(proven, invoice) == "failed"


@LOCAL
async def test_a_delivery_has_one_job_as_long_as_that_is_unfinished(
    person: Person, receiver: Receiver, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url)
    delivery = (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).json()

    async def jobs() -> list[tuple[Any, ...]]:
        rows = await connection.fetch(
            "SELECT state, attempt, run_at <= now() FROM jobs.jobs WHERE user_id = $1", person.id
        )
        return [tuple(row) for row in rows]

    # It waits for its third attempt, hours ahead.
    await connection.execute(
        "UPDATE jobs.jobs SET attempt = 2, run_at = now() + interval '5 hours', is_due = false, dispatched_at = NULL"
    )
    assert (await person.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")).status_code == 202
    assert await jobs() == [(0, 0, True)]
    # And one that has failed is not started over beside another.
    await connection.execute("UPDATE jobs.jobs SET state = 3, finished_at = now()")
    assert (await person.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")).status_code == 202
    failed = await connection.fetchval("SELECT id FROM jobs.jobs WHERE state = 3")
    problem_of(await person.post(f"/v1/jobs/{failed}/retry"), 409, "unique_key_in_use")
    assert sorted(await jobs()) == [(0, 0, True), (3, 0, True)]
