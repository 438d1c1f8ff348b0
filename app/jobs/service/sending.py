"""One webhook request, and what it may reach.

The guard sits where a socket is made: there the address is final, whether it was written as a number, came from DNS,
or was rebound in between. `ipaddress.is_global` is not enough: Python 3.11 takes 6to4 and NAT64 forms of loopback for
public.
"""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from app.jobs.errors import UrlBlocked
from app.jobs.records.webhooks import sign
from app.jobs.service.bounded_responses import BoundedConnector
from app.jobs.service.outages import outage_of
from app.jobs.service.reachability import NetworkUnavailable, Reachability
from app.jobs.service.resolving import Resolver, owner_var
from app.jobs.settings import JobsSettings
from app.kernel.errors import FieldError
from app.kernel.ids import UserId

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_RESPONSE_BYTES = 16 * 1024
# But for tabs and line breaks.
_CONTROLS = dict.fromkeys({*range(32), 127} - {9, 10, 13})
_CONNECT_SECONDS = 5.0
_TOTAL_SECONDS = 15.0
_MAX_URL = 2048
_LONGEST_NUMBER = 9
# There is no route to the receiver, or to any host.
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.ENOBUFS})
_HTTPS_PORTS = frozenset({443, 8443})
# They mean something else in every network, or nothing (RFC 6761, RFC 6762, RFC 8375, and what ICANN keeps free); or
# they are known to lead to whatever private address one likes.
_PRIVATE_NAMES = (
    *(".localhost", ".local", ".internal", ".home.arpa", ".lan", ".intranet", ".corp", ".home"),
    *(".localtest.me", ".lvh.me", ".vcap.me", ".lacolhost.com", ".nip.io", ".sslip.io", ".xip.io", ".local.gd"),
)

_BLOCKED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
        *(
            "::/128",
            "::1/128",
            "::ffff:0:0/96",
            "::ffff:0:0:0/96",
            "::/96",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",
        ),
        *("2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
        *("fec0::/10", "ff00::/8"),
    )
)


class AddressBlocked(OSError):
    """The address is not one that the public internet reaches."""


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """What became of a request; `status` None: there was no answer. `retry_after` is in seconds."""

    status: int | None
    error: str | None
    response: str | None
    milliseconds: int
    retry_after: float | None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - the 2xx of HTTP


def is_blocked(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether webhooks must not go there. An IPv4 address inside an IPv6 one is judged by both."""
    if any(address in network for network in allowed if network.version == address.version):
        return False
    return any(address in network for network in _BLOCKED if network.version == address.version)


class WebhookSender:
    """One per process. Checks addresses and sends requests."""

    def __init__(self, settings: JobsSettings) -> None:
        self._allowed = tuple(ipaddress.ip_network(network) for network in settings.webhook_allow)
        self._takes_http = settings.webhook_http
        self._session: aiohttp.ClientSession | None = None
        self._reachability = Reachability()
        self._resolver = Resolver(self._reachability)

    def check_url(self, url: str) -> None:
        """Refuses an endpoint's address by what is written in it.

        No name is looked up: an answer may take seconds, for which a request would hold its slot, and it may be another
        one at the time of sending, when the address counts.

        Raises:
            UrlBlocked: it is no web address, or leads to one that webhooks must not reach.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _blocked("The URL is not valid.") from error
        # The final dot of a full name, without which the resolver would try other names too.
        host = (parts.hostname or "").removesuffix(".")
        schemes = {"https", "http"} if self._takes_http else {"https"}
        if len(url) > _MAX_URL or not url.isprintable() or not url.isascii() or " " in url or not host:
            raise _blocked("The URL is not valid; a name in another script has to be written in its xn-- form.")
        if parts.scheme not in schemes or parts.username is not None or parts.password is not None or parts.fragment:
            raise _blocked(f"The URL must be {' or '.join(sorted(schemes))}, without a user name and a fragment.")
        if port is not None and not self._takes_http and port not in _HTTPS_PORTS:
            raise _blocked("The port must be 443 or 8443.")
        address = _numeric(host)
        if address is not None:
            if is_blocked(address, self._allowed):
                raise _blocked("The address is not public.")
        elif not self._allowed and ("." not in host or f".{host.lower()}".endswith(_PRIVATE_NAMES)):
            raise _blocked("The name is not public.")

    async def send(
        self,
        url: str,
        message_id: str,
        timestamp: int,
        body: bytes,
        secrets: list[bytes],
        *,
        owner: UserId | None = None,
    ) -> WebhookResponse:
        """Posts a signed message to an endpoint of `owner`; never raises for what the other side does.

        Raises:
            LookupsBusy: nothing was tried.
            NamesUnavailable, NetworkUnavailable: no receiver can be reached at the moment.
        """
        host = (urlsplit(url).hostname or "").removesuffix(".")
        address = _numeric(host)
        if address is not None and is_blocked(address, self._allowed):
            # The HTTP client takes some forms of a number for no address at all.
            return WebhookResponse(None, "address_blocked", None, 0, None)
        owner_var.set(owner)
        session = self._session or self._open()
        headers = {
            "content-type": "application/json",
            "user-agent": "Onehop-Webhooks/1",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, message_id, timestamp, body),
        }
        started = monotonic()
        status: int | None = None
        error = text = None
        wait: float | None = None
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                self._reachability.record_reached("network", host)
                status = response.status
                wait = _seconds(response.headers.get("retry-after"))
                content = await response.content.read(MAX_RESPONSE_BYTES)
                text = _told_of(content)
        except AddressBlocked:
            error = "address_blocked"
        except (aiohttp.ClientConnectorError, aiohttp.ClientOSError) as failure:
            cause = getattr(failure, "os_error", failure)
            if self._is_outage(cause, host, started):
                raise NetworkUnavailable(str(cause)) from failure
            error = "address_blocked" if isinstance(cause, AddressBlocked) else "connection_failed"
        except TimeoutError:
            # Also when the headers came in time and the body drips.
            error, status = "timeout", None
        except (aiohttp.ClientError, ValueError, OSError):
            error = "protocol_error"
        return WebhookResponse(status, error, text, round((monotonic() - started) * 1000), wait)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    def _is_outage(self, cause: OSError, host: str, started: float) -> bool:
        """Whether a connection failed for want of something on our side. Of names the resolver has judged already."""
        if isinstance(cause, AddressBlocked | socket.gaierror):
            return False
        if cause.errno in _NO_ROUTE:
            return self._reachability.is_outage("network", host, started)
        if cause.errno == errno.ECONNREFUSED:
            # It came from the receiver.
            self._reachability.record_reached("network", host)
        return outage_of(cause) is not None

    def _open(self) -> aiohttp.ClientSession:
        connector = BoundedConnector(
            socket_factory=self._make_socket, resolver=self._resolver, use_dns_cache=False, limit=100
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=_TOTAL_SECONDS, sock_connect=_CONNECT_SECONDS),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self._session

    def _make_socket(self, address: Any) -> socket.socket:
        family, kind, protocol, _, target = address
        try:
            final = ipaddress.ip_address(target[0].partition("%")[0])
        except ValueError as error:
            # A number in another form (`127.1`), which the system would understand only after this gate.
            raise AddressBlocked(target[0]) from error
        if is_blocked(final, self._allowed):
            raise AddressBlocked(target[0])
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return made


def _numeric(host: str) -> Address | None:
    """The address that a host is written as, in any form that the system would take for one (`127.1`, `0x7f000001`)."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _told_of(content: bytes) -> str:
    """What is kept of an answer: at most as many bytes, also as JSON, where a control character has six."""
    text = content.decode(errors="replace").translate(_CONTROLS)
    written = orjson.dumps(text)
    if len(written) <= MAX_RESPONSE_BYTES:
        return text
    part = written[1 : MAX_RESPONSE_BYTES - 1].decode(errors="ignore")
    # An escape has two characters, of which the second may be missing.
    backslashes = len(part) - len(part.rstrip("\\"))
    found: str = orjson.loads(f'"{part[: len(part) - backslashes % 2]}"')
    return found


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in its form of seconds; the form of a date is left to the schedule."""
    if retry_after is None or not retry_after.isascii() or not retry_after.isdigit():
        return None
    return float(retry_after[:_LONGEST_NUMBER])


def _blocked(detail: str) -> UrlBlocked:
    return UrlBlocked(errors=[FieldError("#/url", detail, "url_blocked")])
