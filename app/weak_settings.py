"""What production must not start with: each function says what is weak about a value, or returns None.

No message repeats the value: it may be a secret.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from urllib.parse import parse_qs, unquote, urlsplit

MINIMUM_SECRET_BYTES = 32
# Different characters; 32 random hexadecimal digits have fewer once in ten million times.
_SECRET_CHARACTERS = 8
# Of a random secret nearly all triples of neighbours differ: of 64 hexadecimal digits 99 %, of 32 still 99.6 %.
_SECRET_TRIPLES = 0.75
# Runs of a keyboard or an alphabet, in either direction. 32 random hexadecimal digits hold one of eight once in ten
# million times.
_RUNS = ("01234567890123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm", "1qaz2wsx3edc4rfv5tgb")
_RUN_LENGTH = 8
_PLACEHOLDERS = ("changeme", "change-me", "change_me", "secret", "password", "example", "development", "placeholder")
_DATABASE_PASSWORDS = frozenset({"", "postgres", "password", "changeme", "onehop", "secret", "admin", "root", "123456"})
_SSL_MODES = frozenset({"require", "verify-ca", "verify-full"})
# Names that only the operator's own network resolves.
_NEAR_SUFFIXES = (".local", ".internal", ".svc", ".localhost", ".home.arpa")
# The widest network that one operator runs: 10.0.0.0/8, and fc00::/7 for IPv6.
_WIDEST_NETWORK = {4: 8, 6: 7}
# KiB of memory for each number of passes that OWASP's password storage cheat sheet names for argon2id.
_ARGON2_MEMORY_KIB = {1: 47_104, 2: 19_456, 3: 12_288, 4: 9_216, 5: 7_168}


def secret_weakness(secret: str) -> str | None:
    """Of a key that all others are derived from."""
    if not secret:
        return "is required in production"
    if len(secret.encode()) < MINIMUM_SECRET_BYTES or len(set(secret)) < _SECRET_CHARACTERS:
        return f"needs at least {MINIMUM_SECRET_BYTES} random bytes"
    text = secret.lower()
    if any(word in text for word in _PLACEHOLDERS):
        return "looks like a placeholder"
    triples = [text[start : start + 3] for start in range(len(text) - 2)]
    if len(set(triples)) < _SECRET_TRIPLES * len(triples) or _has_run(text):
        return "follows a pattern; make a random one: openssl rand -base64 32"
    return None


def _has_run(text: str) -> bool:
    return any(
        run[start : start + _RUN_LENGTH] in text
        for forward in _RUNS
        for run in (forward, forward[::-1])
        for start in range(len(run) - _RUN_LENGTH + 1)
    )


def database_weakness(url: str) -> str | None:
    """Of a PostgreSQL DSN."""
    if not url:
        return "is required in production"
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    hosts = [*_hosts(parts.netloc), *(host for text in query.get("host", ()) for host in text.split(","))]
    password = unquote(parts.password or query.get("password", [""])[-1]).lower()
    is_default = password in _DATABASE_PASSWORDS or any(word in password for word in ("change", "development"))
    if is_default and (not hosts or not all(host.startswith("/") for host in hosts)):
        return "needs a password that is not a default one"
    if any(_is_far(host) for host in hosts) and query.get("sslmode", [""])[-1] not in _SSL_MODES:
        return "sends data in clear text over a network; add sslmode=verify-full"
    return None


def redis_weakness(url: str) -> str | None:
    """Of the URL of a Redis server, which has answers of everybody."""
    if not url:
        return "is required in production"
    parts = urlsplit(url)
    if not any(_is_far(host) for host in _hosts(parts.netloc)):
        return None
    if parts.scheme != "rediss":
        return "sends data in clear text over a network; use rediss://"
    return None if parts.password else "needs a password: its server is not on a network of your own"


def _hosts(netloc: str) -> list[str]:
    """The hosts of `user:password@a:1,[::1]:2`, without ports."""
    names = netloc.rpartition("@")[2].split(",")
    return [name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0] for name in names if name]


def smtp_weakness(url: str) -> str | None:
    """Of the address of the mail server, to which go passwords and links that reset them."""
    if not url:
        return "is required in production"
    parts = urlsplit(url)
    if parts.scheme == "smtp" and (parts.username or parts.password) and not _is_loopback(parts.hostname):
        return "sends its password in clear text; use smtps:// or smtp+starttls://"
    if parts.scheme == "smtp" and _is_far(parts.hostname):
        return "sends reset links in clear text over a network; use smtps:// or smtp+starttls://"
    return None


def public_url_weakness(url: str) -> str | None:
    """Of the base of all links."""
    return None if url.startswith("https://") else "is required in production and must be https"


def proxies_weakness(networks: Iterable[str]) -> str | None:
    """Of the networks whose word on the client's address is believed."""
    for text in networks:
        network = ip_network(text, strict=False)
        if network.prefixlen < _WIDEST_NETWORK[network.version]:
            return "trusts the whole internet to name the client's address; list the networks of your proxies"
    return None


def cors_weakness(origins: Iterable[str], *, credentials: bool) -> str | None:
    """Of the origins whose scripts may read answers."""
    origins = tuple(origins)
    if "null" in origins:
        return "'null' is the origin of every sandboxed frame and local file"
    if credentials and "*" in origins:
        return "'*' together with APP_HTTP_CORS_CREDENTIALS is never safe"
    if credentials and any(origin.startswith("http://") for origin in origins):
        return "http:// together with APP_HTTP_CORS_CREDENTIALS lets the network act as your users; use https://"
    return None


def hash_weakness(memory_kib: int, iterations: int) -> str | None:
    """Of the cost of one argon2id hash."""
    needed = _ARGON2_MEMORY_KIB[min(iterations, max(_ARGON2_MEMORY_KIB))]
    return None if memory_kib >= needed else f"{iterations} iterations need at least {needed} KiB"


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_far(host: str | None) -> bool:
    """Whether the way to the host may leave the operator's own network: a public address, or a name with a dot that
    others may resolve. A path is that of a local socket.
    """
    if host is None or host.startswith("/"):
        return False
    try:
        return not ip_address(host).is_private
    except ValueError:
        return "." in host and not host.lower().rstrip(".").endswith(_NEAR_SUFFIXES)
