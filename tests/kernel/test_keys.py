"""Derived keys, sealing, ids, the clock, and the client's address."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import time

import pytest
from pydantic import ValidationError

from app.kernel.clock import SystemClock
from app.kernel.ids import new_id
from app.kernel.request.client_address import client_address, network_of, site_of, user_agent
from app.kernel.request.state import RequestState, state_of
from app.kernel.sealing import Keys, SealBroken
from app.kernel.settings import HttpSettings
from tests.fixtures.clocks import ManualClock

SECRET = "a secret of the installation, long enough"


def test_each_purpose_has_its_own_key() -> None:
    keys = Keys(SECRET)
    purposes = ["cursor", "idempotency", "key-id", ""]
    assert len({keys.derive(purpose) for purpose in purposes}) == 4
    assert {len(keys.derive(purpose)) for purpose in purposes} == {32}
    assert Keys(SECRET).derive("cursor") == keys.derive("cursor")
    assert Keys(SECRET + "x").derive("cursor") != keys.derive("cursor")
    assert Keys(SECRET).key_id == keys.key_id != Keys(SECRET + "x").key_id


def test_derivation_is_hkdf_sha256() -> None:
    """Computed apart from our code with HMAC, after RFC 5869, section 2."""
    assert Keys("secret").derive("cursor").hex() == "f22a356f7a26e89d77b3defb65825d675cbb4124215ea98e322544e05ff4fc66"


def test_seal_opens_with_the_same_purpose_and_context_only() -> None:
    keys = Keys(SECRET)
    sealed = keys.encrypt("mail", b"plain", context=b"row 1")
    assert keys.decrypt("mail", sealed, context=b"row 1") == b"plain"
    assert b"plain" not in sealed
    assert keys.encrypt("mail", b"plain", context=b"row 1") != sealed
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for opener, purpose, data, context in [
        (keys, "other", sealed, b"row 1"),
        (keys, "mail", sealed, b"row 2"),
        (keys, "mail", changed, b"row 1"),
        (keys, "mail", sealed[:-1], b"row 1"),
        (keys, "mail", b"", b"row 1"),
        (Keys(SECRET + "x"), "mail", sealed, b"row 1"),
    ]:
        with pytest.raises(SealBroken):
            opener.decrypt(purpose, data, context=context)


def test_ids_are_uuid7_in_order() -> None:
    before = datetime.now(UTC)
    ids = [new_id() for _ in range(5_000)]
    assert {(identifier.version, identifier.variant) for identifier in ids} == {(7, "specified in RFC 4122")}
    assert all(first < second for first, second in pairwise(ids))
    made_at = datetime.fromtimestamp((ids[0].int >> 80) / 1000, UTC)
    # An id counts whole milliseconds.
    assert before - timedelta(milliseconds=1) <= made_at <= datetime.now(UTC)


def test_clocks() -> None:
    assert datetime.now(UTC) <= SystemClock().now() <= datetime.now(UTC)
    assert time() <= SystemClock().timestamp() <= time()
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.advance(1.5)
    assert clock.now() == datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert clock.timestamp() == clock.now().timestamp()


def request_from(peer: str | None, *forwarded: str, **headers: str) -> RequestState:
    raw = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    raw += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return state_of({"type": "http", "headers": raw, "client": (peer, 1) if peer else None})


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "address"),
    [
        ("203.0.113.9", [], (), "203.0.113.9"),
        # No proxy is believed without being trusted.
        ("203.0.113.9", ["198.51.100.1"], (), "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], ("10.0.0.0/8",), "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], ("10.0.0.0/8",), "198.51.100.1"),
        # What the client itself wrote stands further to the left.
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], ("10.0.0.0/8",), "10.0.0.3"),
        ("10.0.0.1", ["<script>"], ("10.0.0.0/8",), None),
        ("::ffff:10.0.0.1", ["198.51.100.1"], ("10.0.0.0/8",), "198.51.100.1"),
        ("2001:db8::1", [], ("10.0.0.0/8",), "2001:db8::1"),
        (None, ["198.51.100.1"], ("10.0.0.0/8",), None),
        ("unix", [], (), None),
    ],
)
def test_client_address(peer: str | None, forwarded: list[str], trusted: tuple[str, ...], address: str | None) -> None:
    assert client_address(request_from(peer, *forwarded), HttpSettings(trusted_proxies=trusted)) == address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('for="[2001:db8::7]:4711";proto=https', "2001:db8::7"),
        ("proto=https;For=198.51.100.1:80", "198.51.100.1"),
        ("for=1.1.1.1, for=198.51.100.1, by=10.0.0.9;for=10.0.0.2", "198.51.100.1"),
        ("for=_hidden", None),
        ("for=unknown", None),
        ("by=10.0.0.9", None),
    ],
)
def test_client_address_by_the_standard_header(forwarded: str, address: str | None) -> None:
    settings = HttpSettings(trusted_proxies=("10.0.0.0/8",), forwarded_header="forwarded")
    assert client_address(request_from("10.0.0.1", "6.6.6.6", forwarded=forwarded), settings) == address


def test_only_the_header_that_the_proxies_set_counts() -> None:
    settings = HttpSettings(trusted_proxies=("10.0.0.0/8",))
    request = request_from("10.0.0.1", "198.51.100.1", forwarded="for=6.6.6.6")
    assert client_address(request, settings) == "198.51.100.1"
    assert client_address(request_from("10.0.0.1", forwarded="for=6.6.6.6"), settings) == "10.0.0.1"


def test_proxies_are_networks() -> None:
    with pytest.raises(ValidationError):
        HttpSettings(trusted_proxies=("10.0.0.0/33",))


@pytest.mark.parametrize(
    ("address", "prefix", "network"),
    [
        ("198.51.100.7", 32, "198.51.100.7/32"),
        ("198.51.100.7", 24, "198.51.100.0/24"),
        ("2001:db8:1:2:3::4", 32, "2001:db8:1:2::/64"),
        (None, 32, "unknown"),
    ],
)
def test_networks(address: str | None, prefix: int, network: str) -> None:
    assert network_of(address, prefix) == network


@pytest.mark.parametrize(
    ("address", "site"),
    [("198.51.100.7", "198.51.100.0/24"), ("2001:db8:1:2:3::4", "2001:db8:1::/48"), (None, "unknown")],
)
def test_sites(address: str | None, site: str) -> None:
    assert site_of(address) == site


def test_user_agent_is_shortened() -> None:
    assert user_agent(request_from(None, user_agent="x" * 600)) == "x" * 512
    assert user_agent(request_from(None)) is None
