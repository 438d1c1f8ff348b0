"""What a caller would like, where it can be had: `Prefer` (RFC 7240) and `Accept`."""

import re

from app.kernel.request.state import RequestState

_MAX_WAIT_SECONDS = 30
_WAIT = re.compile(rb"(?:^|[,;\s])wait\s*=\s*(\d{1,9})(?=$|[,;\s])", re.IGNORECASE)
_QUALITY = re.compile(r"q\s*=\s*([01](?:\.\d{0,3})?)", re.ASCII)


def asked_to_wait(state: RequestState) -> int:
    """The seconds of `Prefer: wait=N`, at most 30; 0 without one, or in words that make no sense."""
    prefer = state.headers.get(b"prefer")
    found = _WAIT.search(prefer) if prefer is not None else None
    return min(int(found[1]), _MAX_WAIT_SECONDS) if found else 0


def prefers_json(accept: str) -> bool:
    """Whether `Accept` ranks JSON above HTML (RFC 9110, section 12.5.1)."""
    qualities: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, _, parameters = item.partition(";")
        found = _QUALITY.search(parameters)
        qualities[name.strip()] = float(found[1]) if found else 1.0
    return _quality(qualities, "application/json") > _quality(qualities, "text/html")


def _quality(qualities: dict[str, float], media_type: str) -> float:
    """That of the most specific range which holds `media_type`; 0 if none does."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((qualities[name] for name in ranges if name in qualities), 0.0)
