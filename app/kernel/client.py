"""Who is at the other end of the connection: network address and user agent, as far as they can be believed."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from fastapi import Request

_MAX_USER_AGENT = 512
_Network = tuple[str, ...]


def client_address(request: Request, trusted_proxies: Sequence[str]) -> str | None:
    """The client's IP address.

    `X-Forwarded-For` counts only from the right, and only as far as each hop is one of `trusted_proxies` (CIDRs);
    what a client writes into it itself is never believed.
    """
    peer = request.client.host if request.client else None
    if peer is None or not trusted_proxies:
        return _normal(peer)
    hops = [hop.strip() for value in request.headers.getlist("x-forwarded-for") for hop in value.split(",")]
    address = peer
    while hops and _is_trusted(address, tuple(trusted_proxies)):
        address = hops.pop()
    return _normal(address)


def user_agent(request: Request) -> str | None:
    """The `User-Agent`, shortened to 512 characters."""
    value = request.headers.get("user-agent")
    return value[:_MAX_USER_AGENT] if value else None


def _normal(address: str | None) -> str | None:
    parsed = _parse(address or "")
    return str(parsed) if parsed else None


@lru_cache(maxsize=1024)
def _is_trusted(address: str, networks: _Network) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed in ip_network(network, strict=False) for network in networks)


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
