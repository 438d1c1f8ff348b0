"""A request that asks for a WebSocket is answered as the ordinary request that it is too (RFC 9110, section 7.8).

There are no WebSocket routes: our own server passes over `Upgrade`, and a route that only another server could reach
would stand outside of admission, quotas and permissions. Under another server that offers a WebSocket the same layers
give the same answer.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ANSWERED_BY_HTTP = "websocket.http.response"


async def answer_without_upgrade(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers the handshake of a WebSocket as the GET that it is; closes it where the server cannot send an answer."""
    if _ANSWERED_BY_HTTP not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    request = {
        **scope,
        "type": "http",
        "method": "GET",
        "scheme": "https" if scope.get("scheme") == "wss" else "http",
    }
    is_read = False

    async def receive_request() -> Message:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return {"type": "http.disconnect"}

    async def send_answer(message: Message) -> None:
        # The layers look afterwards at what they have sent, so it is the copy that gets the other name.
        await send({**message, "type": f"websocket.{message['type']}"})

    await app(request, receive_request, send_answer)
