"""A WebSocket is a way around permissions, quotas and admission, so there is none, under any server."""

import pytest
from fastapi import FastAPI, WebSocket

from app import main
from app.kernel.http import Router
from app.settings import Settings
from tests.attacks.conftest import RawClient
from tests.fixtures.people import Person

_HANDSHAKE = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade, close"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
]


async def _ask(raw: RawClient, target: str, *fields: tuple[str, str]) -> tuple[int, bytes]:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (("Host", "localhost"), *_HANDSHAKE, *fields))
    answer = await raw.exchange(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
    return answer.status, answer.body


async def test_a_handshake_gets_the_answer_of_the_request_that_it_is(raw: RawClient, person: Person) -> None:
    token = ("Authorization", person.headers["Authorization"])
    for target, fields, status in (
        ("/livez", (), 200),
        ("/v1/overview", (), 401),
        ("/v1/overview", (token,), 200),
        ("/v1/overview", (token, token), 400),
        ("/v1/admin/users", (token,), 403),
        ("/nowhere", (), 404),
        ("/%6detrics", (), 400),
    ):
        answered, body = await _ask(raw, target, *fields)
        assert answered == status, (target, body)


def test_a_websocket_route_keeps_the_program_from_starting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(prefix="/v1")

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()

    monkeypatch.setattr(main, "ROUTERS", (*main.ROUTERS, router))
    with pytest.raises(RuntimeError, match="WebSocket"):
        main.create_app(settings)


async def test_a_server_that_cannot_answer_a_handshake_closes_it(app: FastAPI) -> None:
    sent = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    await app({"type": "websocket", "path": "/livez", "headers": [], "query_string": b""}, receive, send)
    assert sent == [{"type": "websocket.close"}]
