"""What a caller would like, where it can be had (RFC 7240)."""

import re

from starlette.types import Scope

from app.kernel.request_headers import headers_of

_MAX_WAIT_SECONDS = 30
_WAIT = re.compile(rb"(?:^|[,;\s])wait\s*=\s*(\d{1,9})(?=$|[,;\s])", re.IGNORECASE)


def asked_to_wait(scope: Scope) -> int:
    """The seconds of `Prefer: wait=N`, at most 30; 0 where nobody asks, or in words that make no sense.

    Asked by all who let a request wait, give it a place meanwhile, or bound its time, so that they mean the same.
    """
    prefer = headers_of(scope).get(b"prefer")
    found = _WAIT.search(prefer) if prefer is not None else None
    return min(int(found[1]), _MAX_WAIT_SECONDS) if found else 0
