"""Profiles, preferences and events."""

from benchmarks.cases.making import EVENT, HASH, WRONG_PASSWORD, Case, many, numbered, one
from benchmarks.cases.scene import UNKNOWN

_BATCH = 500
_properties = {f"name{number}": number for number in range(40)}
_batch = {"events": [{"kind": f"kind.{number}", "properties": _properties} for number in range(_BATCH)]}
_extra = {f"k{number}": number for number in range(1_200)}

CASES: dict[str, Case] = {
    "GET /v1/users/me": one("GET", "/v1/users/me", units=0.05),
    "DELETE /v1/users/me": one("DELETE", "/v1/users/me", WRONG_PASSWORD, HASH, answers={403, 429}),
    "PATCH /v1/users/me": numbered("PATCH", "/v1/users/me", lambda n: {"bio": "é" * 400 + str(n)}),
    "GET /v1/users/me/preferences": one("GET", "/v1/users/me/preferences", units=0.05),
    "PUT /v1/users/me/preferences": numbered("PUT", "/v1/users/me/preferences", lambda n: {"extra": _extra | {"n": n}}),
    "PATCH /v1/users/me/preferences": numbered(
        "PATCH", "/v1/users/me/preferences", lambda n: {"extra": _extra | {"n": n}}
    ),
    "GET /v1/users/me/events": many("/v1/users/me/events?limit=100&kind=kind.{n}"),
    "GET /v1/users/me/events/summary": many("/v1/users/me/events/summary?bucket=day&since={day}T00:00:00.{n}Z"),
    "POST /v1/users/lookup": one("POST", "/v1/users/lookup", {"ids": [UNKNOWN] * 100}, 1 + 100 * EVENT),
    "GET /v1/users/{user_id}": one("GET", "/v1/users/{user}"),
    "POST /v1/events": one("POST", "/v1/events", _batch, 1 + (_BATCH - 1) * EVENT, answers={201}),
    # Streams end by themselves when they are refused; what one costs that goes on is in tests/attacks.
    "GET /v1/users/me/events/stream": Case(
        lambda s: [s.call("GET", "/v1/users/me/events/stream", last_event_id="not an id")], answers={422}
    ),
}
