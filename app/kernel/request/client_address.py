"""The client of a request: network address and user agent, as far as they can be believed."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from app.kernel.request.state import RequestState
from app.kernel.settings import HttpSettings

_MAX_USER_AGENT = 512
_IPV6_PREFIX = 64
_IPV4_SITE_PREFIX = 24
# With one come 65,536 networks of a host.
_IPV6_SITE_PREFIX = 48
_CACHED = 4096
# Only the right end counts, which trusted proxies wrote. Whatever a client put in front of it is not kept.
_MAX_FORWARDED = 512
_PROXY_HEADERS = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"via")


def client_address(state: RequestState, settings: HttpSettings) -> str | None:
    """The client's IP address; IPv4 in its own form also where it came mapped into IPv6.

    `X-Forwarded-For`, or `Forwarded` (RFC 7239) where that is what the proxies set, counts only from the right, and
    only as far as each hop is one of `trusted_proxies`; what a client writes into it itself is never believed.
    """
    peer = state.peer
    if peer is None or not settings.trusted_proxies:
        return _normal(peer)
    name = settings.forwarded_header.encode()
    forwarded = state.headers.get(name, b"")[-_MAX_FORWARDED:]
    return _walk(peer, forwarded, settings.trusted_proxies, is_standard=name == b"forwarded")


def hides_client(state: RequestState, settings: HttpSettings) -> bool:
    """Whether a request came through a proxy that is not trusted, or that does not name the client: the address that is
    left then is the proxy's, which says nothing of the client.
    """
    headers = state.headers
    if not any(name in headers for name in _PROXY_HEADERS):
        return False
    peer = _normal(state.peer)
    is_trusted = peer is not None and is_within(peer, settings.trusted_proxies)
    is_named = settings.forwarded_header.encode() in headers and client_address(state, settings) is not None
    return not (is_trusted and is_named)


@lru_cache(maxsize=_CACHED)
def network_of(address: str | None, ipv4_prefix: int = 32, ipv6_prefix: int = _IPV6_PREFIX) -> str:
    """The network that an address (of `client_address`) is counted by: a /64 of IPv6, where each host has many."""
    if address is None:
        return "unknown"
    return str(ip_network(f"{address}/{ipv6_prefix if ':' in address else ipv4_prefix}", strict=False))


def site_of(address: str | None) -> str:
    """The network around that, as one site has it: a /24 of IPv4, a /48 of IPv6 (RFC 6177)."""
    return network_of(address, ipv4_prefix=_IPV4_SITE_PREFIX, ipv6_prefix=_IPV6_SITE_PREFIX)


def user_agent(state: RequestState) -> str | None:
    """The `User-Agent`, shortened to 512 characters."""
    return state.headers.get(b"user-agent", b"").decode("latin-1")[:_MAX_USER_AGENT] or None


@lru_cache(maxsize=_CACHED)
def _walk(peer: str, forwarded: bytes, trusted: Sequence[str], *, is_standard: bool) -> str | None:
    text = forwarded.decode("latin-1")
    hops = list(_standard_hops(text)) if is_standard else [hop.strip() for hop in text.split(",")] if text else []
    address: str | None = _normal(peer)
    while hops and address is not None and is_within(address, trusted):
        address = _normal(hops.pop())
    return address


def _standard_hops(text: str) -> Iterable[str]:
    """The `for` of each element of RFC 7239; a quoted string with a comma in it is none that a proxy writes."""
    for element in text.split(","):
        pairs = (pair.partition("=") for pair in element.split(";"))
        yield next((value.strip().strip('"') for name, _, value in pairs if name.strip().lower() == "for"), "")


@lru_cache(maxsize=_CACHED)
def is_within(address: str, networks: Sequence[str]) -> bool:
    """Whether an IP address belongs to one of `networks`."""
    parsed = ip_address(address)
    return any(parsed in ip_network(network, strict=False) for network in networks)


@lru_cache(maxsize=_CACHED)
def _normal(address: str | None) -> str | None:
    """The address alone: some proxies add a port, and IPv6 has brackets then."""
    if not address:
        return None
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
