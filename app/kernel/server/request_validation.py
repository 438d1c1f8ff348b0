"""What makes a request ambiguous, so that it may not be passed on (RFC 9112)."""

from collections.abc import Callable, Sequence

from app.kernel.errors import AppError, InvalidMessage, UnknownTransferCoding

_SLASH = ord("/")
_VERSIONS = frozenset({"1.1", "1.0"})


# The target of an OPTIONS request that is about the server as a whole (section 3.2.4).
WHOLE_SERVER = b"*"


def fault_of_head(
    method: bytes,
    url: bytes,
    version: str,
    hosts: Sequence[bytes],
    codings: Sequence[bytes],
    knows_host: Callable[[bytes], bool],
) -> AppError | None:
    """Why a message with this method and target, these `Host` and these `Transfer-Encoding` fields is refused.

    The parser has refused what is no message at all, two lengths, and a length beside a coding.
    """
    if (len(hosts) != 1 and (hosts or version != "1.0")) or not all(map(knows_host, hosts)):
        return InvalidMessage("There must be one valid Host field.")
    if version not in _VERSIONS:
        return InvalidMessage("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if codings and (version == "1.0" or len(codings) > 1):
        return InvalidMessage("The length of the message is ambiguous.")
    if codings and codings[0].lower() != b"chunked":
        return UnknownTransferCoding()
    if url == WHOLE_SERVER and method == b"OPTIONS":
        return None
    return _fault_of_target(url, hosts)


def _fault_of_target(url: bytes, hosts: Sequence[bytes]) -> AppError | None:
    if b"#" in url:
        # A proxy that compares whole targets would not see the path that is answered.
        return InvalidMessage("The target holds a fragment.")
    if url[0] != _SLASH and not _is_of_host(url, hosts):
        return InvalidMessage("The target is neither a path nor a URI of this host.")
    return None


def _is_of_host(url: bytes, hosts: Sequence[bytes]) -> bool:
    """Whether an absolute-form target (section 3.2.2) names the host of the `Host` field."""
    scheme, _, rest = url.partition(b"://")
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    return scheme.lower() in {b"http", b"https"} and [authority.lower()] == [host.lower() for host in hosts]
