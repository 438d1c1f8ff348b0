"""Addresses that no webhook may reach, at registration and at each connection."""

import ipaddress
from typing import TypeAlias

import asyncpg
import pytest

from app.jobs.errors import UrlBlocked
from app.jobs.service.sending import WebhookSender, is_blocked
from app.jobs.settings import JobsSettings
from tests.fixtures.people import Person
from tests.jobs.receiver import Receiver

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

BLOCKED = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255
192.0.2.1 198.18.0.1 203.0.113.9 192.88.99.1 240.0.0.1 ::1 :: ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1
64:ff9b:1::1 2002:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 fe80::1 fc00::1 fd12::1 ff02::1 5f00::1
3fff::1 2001:db8::1 fec0::1 100::1 ::ffff:0:127.0.0.1
"""


@pytest.mark.parametrize("address", BLOCKED.split())
def test_an_address_that_is_not_public_is_blocked(address: str) -> None:
    assert is_blocked(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_a_public_address_is_not_blocked(address: str) -> None:
    assert not is_blocked(ipaddress.ip_address(address))


URLS = [
    "http://example.com/",
    "ftp://example.com/",
    "https://user:pass@example.com/",
    "https://example.com:22/",
    "https://",
    "https:///path",
    "example.com",
    "https://exa mple.com/",
    "https://example.com/#x",
    "https://exämple.com/",
    "https://127.0.0.1/",
    "https://localhost/",
    "https://localhost./",
    "https://hooks.localhost/",
    "https://127.0.0.1.:443/",
    "https://metadata.google.internal/",
    "https://localtest.me/",
    "https://a.LVH.me/",
    "https://127.0.0.1.nip.io/",
    "https://postgres/",
    "https://ip6-localhost/",
    "https://[::ffff:0:7f00:1]/",
    "https://[::1]/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://169.254.169.254/latest/meta-data",
    "https://example.com:99999/",
]


@pytest.mark.parametrize("url", URLS)
async def test_an_endpoint_at_a_bad_address_is_refused(person: Person, connection: Connection, url: str) -> None:
    answer = await person.post("/v1/webhooks/endpoints", json={"url": url, "event_types": ["*"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "url_blocked")
    assert await connection.fetchval("SELECT count(*) FROM jobs.webhook_endpoints") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "[::ffff:127.0.0.1]"])
async def test_no_connection_reaches_a_blocked_address(receiver: Receiver, host: str) -> None:
    sender = WebhookSender(JobsSettings(webhook_http=True))
    port = receiver.url.split(":")[2]
    try:
        answer = await sender.send(f"http://{host}:{port}", "id", 1, b"{}", [b"secret"])
    finally:
        await sender.close()
    assert (answer.status, answer.error) == (None, "address_blocked")
    assert receiver.requests == []


def test_a_url_is_checked_by_the_settings_of_the_installation() -> None:
    sender = WebhookSender(JobsSettings(webhook_http=True, webhook_allow=("127.0.0.0/8",)))
    sender.check_url("http://127.0.0.1:8080/x")
    with pytest.raises(UrlBlocked):
        sender.check_url("http://10.0.0.1/")
