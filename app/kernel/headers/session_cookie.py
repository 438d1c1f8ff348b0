"""The cookie that a browser's session travels in, and the requests that other sites make a browser send with it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from urllib.parse import urlsplit

from starlette.responses import Response

from app.kernel.errors import BadRequest, Forbidden
from app.kernel.settings import HttpSettings

# A line end can be in no header field, so that no `Authorization` header is taken for a cookie.
_MARK = b"\n"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class RepeatedCookie(BadRequest):
    """The session cookie was sent more than once, with two values of which none can be believed. Delete both."""

    code = "repeated_cookie"
    title = "Repeated session cookie"


class CsrfRejected(Forbidden):
    """A browser sent a session cookie with a request that does not come from a page of this service. Send the request
    from its own or a configured origin, or with an access token instead of the cookie.
    """

    code = "csrf_rejected"
    title = "Request from a foreign site"


class SessionCookie:
    """Reads and writes the cookie.

    `base_url` is asked with the first request, because in development it is known only once the server listens. Under
    `https` the name begins with `__Host-`: no other host, and no unencrypted connection, can set such a cookie.
    """

    def __init__(self, base_url: Callable[[], str], settings: HttpSettings) -> None:
        self._base_url = base_url
        self._settings = settings

    @cached_property
    def is_secure(self) -> bool:
        """Whether browsers send it over encrypted connections only."""
        return self._base_url().startswith("https:")

    @cached_property
    def name(self) -> str:
        return "__Host-onehop" if self.is_secure else "onehop"

    @cached_property
    def _prefix(self) -> bytes:
        return self.name.encode() + b"="

    @cached_property
    def origins(self) -> frozenset[bytes]:
        """Those whose pages may act with the cookie: our own, and those that may send credentials across origins."""
        allowed: Sequence[str] = self._settings.cors_origins if self._settings.cors_credentials else ()
        return frozenset(_origin_of(url) for url in (self._base_url(), *allowed) if url != "*")

    def credential_of(self, fields: Mapping[bytes, bytes]) -> bytes | None:
        """What the request names its caller by: its `Authorization` header, whatever that is, or else the session
        cookie, in a form that `value_in` knows. None: by nothing, or by several cookies.
        """
        header = fields.get(b"authorization")
        if header is not None:
            return header
        values = self._values(fields)
        return _MARK + values[0] if len(values) == 1 else None

    def check(self, method: str, fields: Mapping[bytes, bytes], credential: bytes | None) -> None:
        """Lets a request pass that names its caller by the cookie, if it does. `credential` is what `credential_of`
        found.

        Raises:
            RepeatedCookie: by two of them.
            CsrfRejected: it may change something, and does not come from a page of ours.
        """
        if credential is None:
            if len(self._values(fields)) > 1:
                raise RepeatedCookie
        elif credential.startswith(_MARK) and method not in _SAFE_METHODS and not self._is_own(fields):
            raise CsrfRejected

    def check_opening(self, fields: Mapping[bytes, bytes]) -> None:
        """Lets a request pass whose answer sets the cookie: another site must not log a browser in.

        Raises:
            CsrfRejected: a browser sends it, from a page that is not ours.
        """
        is_of_browser = b"origin" in fields or b"sec-fetch-site" in fields
        if is_of_browser and not self._is_own(fields):
            raise CsrfRejected

    def set(self, response: Response, value: str, *, seconds: int) -> None:
        """Has the browser keep `value` for so long."""
        response.set_cookie(
            self.name, value, max_age=seconds, path="/", secure=self.is_secure, httponly=True, samesite="lax"
        )

    def clear(self, response: Response) -> None:
        """Has the browser forget it."""
        response.delete_cookie(self.name, path="/", secure=self.is_secure, httponly=True, samesite="lax")

    def _values(self, fields: Mapping[bytes, bytes]) -> list[bytes]:
        header = fields.get(b"cookie")
        if header is None or self._prefix not in header:
            return []
        prefix = self._prefix
        pairs = [pair.strip(b" \t") for pair in header.split(b";")]
        return [pair[len(prefix) :] for pair in pairs if pair.startswith(prefix)]

    def _is_own(self, fields: Mapping[bytes, bytes]) -> bool:
        return fields.get(b"sec-fetch-site") == b"same-origin" or fields.get(b"origin") in self.origins


def value_in(credential: bytes) -> str | None:
    """The value of the cookie, if `credential` is one."""
    return credential[len(_MARK) :].decode("latin-1") if credential.startswith(_MARK) else None


def _origin_of(url: str) -> bytes:
    """As browsers write it in `Origin`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    is_default = parts.port is None or parts.port == _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}{'' if is_default else f':{parts.port}'}".encode()
