"""An outage of our name servers or of our network costs no webhook and no e-mail an attempt; one of a receiver does."""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, TypeAlias

import aiosmtplib
import asyncpg
import pytest

from app.jobs.service import sending
from app.jobs.service.outages import outage_of
from app.jobs.service.reachability import NamesUnavailable, NetworkUnavailable, Reachability
from app.jobs.service.resolving import Resolver
from app.jobs.service.sending import WebhookSender
from app.jobs.settings import JobsSettings
from app.kernel.clock import SystemClock
from app.kernel.mail import Mail, Mailer, MailServerUnavailable
from app.kernel.mail.smtp import SmtpTransport
from app.kernel.settings import MailSettings
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.application import free_port
from tests.fixtures.people import MakePerson
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_getaddrinfo = socket.getaddrinfo


class NameServers:
    """The system's look-up: `failure` is what it says of names in `.example`, unless they are in `known`."""

    def __init__(self, failure: int) -> None:
        self.failure = failure
        self.asked = 0
        self.known: set[str] = set()
        self.meanwhile: Callable[[], None] = lambda: None

    def getaddrinfo(self, host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not name.endswith(".example"):
            return _getaddrinfo(host, *args, **options)
        self.asked += 1
        self.meanwhile()
        if name not in self.known:
            raise socket.gaierror(self.failure, "failed")
        return _getaddrinfo("127.0.0.1", *args, **options)


@LOCAL
async def test_a_name_server_that_is_away_costs_no_attempt(
    make_person: MakePerson,
    receiver: Receiver,
    settings: Settings,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = NameServers(socket.EAI_AGAIN)
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    person = await make_person()
    endpoint = await register(person, f"http://hooks.example:{receiver.url.split(':')[2]}")
    await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
    async with open_worker(settings):
        for number in range(1, 4):
            await eventually(lambda number=number: names.asked == number)  # type: ignore[misc]

            async def is_postponed() -> bool:
                done = await connection.execute(
                    "UPDATE jobs.jobs SET run_at = now() WHERE kind = 'webhook.deliver' AND state = 0 "
                    "AND postponed_since IS NOT NULL AND run_at > now()"
                )
                return done == "UPDATE 1"

            row = await connection.fetchrow("SELECT state, attempts, last_error FROM jobs.webhook_deliveries")
            assert row is not None
            assert tuple(row) == ("pending", 0, None)
            if number == 3:
                names.known.add("hooks.example")
            await eventually(is_postponed)
        await eventually(lambda: len(receiver.requests) == 1)

        async def is_delivered() -> bool:
            return bool(await connection.fetchval("SELECT state FROM jobs.webhook_deliveries") == "delivered")

        await eventually(is_delivered)
    assert await connection.fetchval("SELECT attempts FROM jobs.webhook_deliveries") == 1
    assert await connection.fetchval("SELECT failures FROM jobs.webhook_endpoints") == 0


@LOCAL
async def test_an_outage_longer_than_a_day_is_told_as_a_failed_attempt(
    make_person: MakePerson, settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", NameServers(socket.EAI_AGAIN).getaddrinfo)
    person = await make_person()
    endpoint = await register(person, "http://hooks.example/")
    await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
    await connection.execute("UPDATE jobs.webhook_deliveries SET created_at = now() - interval '25 hours'")
    async with open_worker(settings):

        async def is_told() -> bool:
            row = await connection.fetchrow("SELECT attempts, last_error FROM jobs.webhook_deliveries")
            return row is not None and tuple(row) == (1, "names_unavailable")

        await eventually(is_told)


async def test_a_name_that_fails_alone_is_the_receivers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NameServers(socket.EAI_AGAIN)
    names.known = {"other.example"}
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    reachability = Reachability()
    resolver = Resolver(reachability)
    with pytest.raises(NamesUnavailable):
        await resolver.resolve("broken.example", 80)
    # What was answered before the question proves nothing of now.
    assert await resolver.resolve("other.example", 80)
    with pytest.raises(NamesUnavailable):
        await resolver.resolve("broken.example", 80)
    names.meanwhile = lambda: reachability.record_reached("names", "other.example")
    with pytest.raises(socket.gaierror):
        await resolver.resolve("broken.example", 80)
    # Its own answers are no proof for the others.
    names.meanwhile = lambda: reachability.record_reached("names", "broken.example")
    with pytest.raises(NamesUnavailable):
        await resolver.resolve("broken.example", 80)
    names.meanwhile, names.failure = lambda: None, socket.EAI_NONAME
    with pytest.raises(socket.gaierror):
        await resolver.resolve("unknown.example", 80)
    await resolver.close()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENETUNREACH, NetworkUnavailable),
        (errno.EHOSTUNREACH, NetworkUnavailable),
        (errno.ENETDOWN, NetworkUnavailable),
        (errno.EADDRNOTAVAIL, NetworkUnavailable),
        (errno.EMFILE, NetworkUnavailable),
        (errno.EPERM, NetworkUnavailable),
        (errno.ECONNREFUSED, "connection_failed"),
        (errno.ECONNRESET, "connection_failed"),
    ],
)
async def test_what_keeps_this_machine_from_connecting_is_no_attempt(
    monkeypatch: pytest.MonkeyPatch, number: int, expected: Any
) -> None:
    def make_socket(*_: Any) -> socket.socket:
        raise OSError(number, "refused by the system")

    monkeypatch.setattr(sending.WebhookSender, "_make_socket", make_socket)
    sender = WebhookSender(JobsSettings(webhook_allow=("127.0.0.1/32",), webhook_http=True))

    async def send() -> str | None:
        return (await sender.send("http://127.0.0.1:9/", "id", 0, b"{}", [b"secret"])).error

    if isinstance(expected, str):
        assert await send() == expected
    else:
        with pytest.raises(expected):
            await send()
    await sender.close()


async def test_a_route_that_is_missing_to_one_receiver_alone_is_its_fault() -> None:
    reachability = Reachability()
    assert reachability.is_outage("network", "a.example", 0.0)
    reachability.record_reached("network", "a.example")
    assert reachability.is_outage("network", "a.example", 0.0)
    for host in ("b.example", "c.example", "a.example"):
        reachability.record_reached("network", host)
    assert not reachability.is_outage("network", "a.example", 0.0)
    assert reachability.is_outage("names", "a.example", 0.0)


def test_such_errors_of_any_job_are_outages() -> None:
    assert outage_of(socket.gaierror(socket.EAI_AGAIN, "failed")) == "names_unavailable"
    assert outage_of(OSError(errno.ENETUNREACH, "no network")) == "enetunreach"
    assert outage_of(socket.gaierror(socket.EAI_NONAME, "unknown")) is None


@pytest.mark.parametrize("failure", [socket.EAI_AGAIN, socket.EAI_NONAME])
async def test_a_relay_whose_name_is_not_found_is_waited_out(monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", NameServers(failure).getaddrinfo)
    with pytest.raises(MailServerUnavailable):
        await _send("smtp://relay.example:25")


async def test_a_relay_that_fails_while_it_turns_tls_on_is_waited_out() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 relay\r\n")
        await reader.readline()
        writer.write(b"250-relay\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go on\r\nthis is no TLS record at all\r\n")
        await reader.read()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(answer, "127.0.0.1", port):
        with pytest.raises(MailServerUnavailable) as caught:
            await _send(f"smtp+starttls://127.0.0.1:{port}")
    assert not isinstance(caught.value.__cause__, aiosmtplib.SMTPResponseException)


async def _send(url: str) -> None:
    settings = MailSettings.model_validate({"smtp_url": url})
    mailer = Mailer(settings, SmtpTransport(settings), SystemClock())
    await mailer.send(Mail("one@example.com", "s", "t", "<p>h</p>", "reference"))
