"""What is answered from memory without the layers is what the layers answer, and only that."""

from typing import Any

import pytest
import redis

from app.kernel.http.prepared_problem import Refused
from app.kernel.middleware.request_context import _duration
from app.main import Onehop
from tests.fixtures.application import Budget
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually

OWN = {"x-request-id", "ratelimit"}


def scope_of(person: Person, path: str = "/v1/overview", method: str = "GET", **headers: str) -> dict[str, Any]:
    fields = {"host": "localhost", **person.headers, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(name.lower().encode(), text.encode()) for name, text in fields.items()],
    }


def answer_of(app: Onehop, scope: dict[str, Any]) -> tuple[bytes, bytes] | None:
    assert app.edge is not None
    decision = app.edge.decide(scope)
    assert not isinstance(decision, Refused)
    return decision


def parsed(finished: tuple[bytes, bytes]) -> tuple[int, dict[str, str], bytes]:
    status, *lines = finished[0].decode().removesuffix("\r\n").split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), finished[1]


def counted() -> float:
    """Overviews answered with 200 so far; read where they are counted, because the whole registry takes its time."""
    buckets: list[Any] = _duration.labels("GET", "/v1/overview", "200")._buckets
    return float(sum(bucket.get() for bucket in buckets))


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
@pytest.mark.parametrize("path", ["/v1/overview", "/v1/users/me"])
async def test_it_is_what_the_layers_answer(app: Onehop, person: Person, path: str, accepted: str) -> None:
    assert answer_of(app, scope_of(person, path)) is None
    # Only the layers look at this guard.
    guard = {"Accept-Encoding": accepted, "If-Match": "*"}
    layers = await person.get(path, headers=guard | {"X-Request-ID": "mine"})
    finished = answer_of(app, scope_of(person, path, accept_encoding=accepted, x_request_id="mine"))
    assert finished is not None
    status, headers, body = parsed(finished)
    assert status == layers.status_code == 200
    assert headers["x-request-id"] == "mine"
    assert {name: text for name, text in headers.items() if name not in OWN} == {
        name: text for name, text in layers.headers.items() if name not in OWN
    }
    assert len(body) == int(headers["content-length"])
    again = await person.get(path, headers=guard | {"If-None-Match": headers["etag"]})
    unchanged = answer_of(app, scope_of(person, path, accept_encoding=accepted, if_none_match=headers["etag"]))
    assert unchanged is not None
    status, headers, body = parsed(unchanged)
    assert (status, body) == (again.status_code, again.content) == (304, b"")
    assert headers.keys() == again.headers.keys()


async def test_each_is_counted_and_charged(app: Onehop, person: Person) -> None:
    await person.get("/v1/overview")
    (bucket,) = [bucket for key, bucket in app.state.limits.buckets.items() if person.id.hex in key.replace("-", "")]
    before, tokens = counted(), bucket.tokens
    for _ in range(20):
        assert answer_of(app, scope_of(person)) is not None
    assert counted() == before + 20
    assert tokens - bucket.tokens == pytest.approx(20 * 0.05)
    bucket.tokens = bucket.low
    assert answer_of(app, scope_of(person)) is None
    assert bucket.tokens == bucket.low


async def test_whatever_is_unusual_is_left_to_the_layers(app: Onehop, person: Person) -> None:
    await person.get("/v1/overview")
    assert answer_of(app, scope_of(person)) is not None
    unusual = [
        scope_of(person, method="HEAD"),
        scope_of(person, method="POST"),
        scope_of(person, "/v1/users/me/events"),
        scope_of(person, content_length="0"),
        scope_of(person, authorization="Bearer of another user"),
        scope_of(person) | {"query_string": b"a=b"},
    ]
    without_token = scope_of(person)
    without_token["headers"] = without_token["headers"][:1]
    for scope in [*unusual, without_token]:
        assert answer_of(app, scope) is None
    assert (await person.post("/v1/events", json={"kind": "a.b"})).status_code == 201
    assert answer_of(app, scope_of(person)) is None
    await person.get("/v1/overview")
    await person.post("/v1/auth/logout", json={})
    assert answer_of(app, scope_of(person)) is None


async def test_an_answer_near_its_end_is_renewed_and_nobody_waits(
    app: Onehop, person: Person, budget: Budget, redis_url: str
) -> None:
    await person.get("/v1/overview")
    local = app.state.resources.cache._local
    (entry,) = local._entries.values()
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        await server.flushall()
    entry.due_at = 0.0
    with budget(0):
        before = answer_of(app, scope_of(person, x_request_id="mine"))
    await eventually(lambda: list(local._entries.values()) not in ([], [entry]))
    (renewed,) = local._entries.values()
    assert renewed.due_at < renewed.expires_at
    assert answer_of(app, scope_of(person, x_request_id="mine")) == before


async def test_no_layer_runs_for_what_the_edge_answers(
    app: Onehop, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not under a server that knows nothing of the edge either, as here."""
    before = await person.get("/v1/overview")
    monkeypatch.setattr(app.edge, "_layers", None)
    again = await person.get("/v1/overview")
    assert (again.status_code, again.content, again.headers["etag"]) == (200, before.content, before.headers["etag"])
    unchanged = await person.get("/v1/overview", headers={"If-None-Match": before.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    with pytest.raises(TypeError):
        await person.get("/v1/overview", headers={"If-Match": "*"})


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://front.example")
async def test_an_answer_from_memory_has_what_a_browser_needs_to_read_it(app: Onehop, person: Person) -> None:
    assert app.edge is None
    first, again = [await person.get("/v1/overview", headers={"Origin": "https://front.example"}) for _ in range(2)]
    assert again.headers["access-control-allow-origin"] == "https://front.example"
    assert "X-Request-ID" in again.headers["access-control-expose-headers"]
    own = {"x-request-id", "ratelimit"}
    assert {name: text for name, text in again.headers.items() if name not in own} == {
        name: text for name, text in first.headers.items() if name not in own
    }
