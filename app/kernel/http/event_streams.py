"""What all routes with server-sent events share."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from fastapi import Request

from app.kernel.auth import InvalidToken

T = TypeVar("T")

# Sent at the beginning: how soon a client comes again after the end of a stream.
RECONNECT_MILLISECONDS = 1000


async def while_welcome(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items, until the caller's credential is not good any more."""
    try:
        async for item in items:
            yield item
    except InvalidToken:
        return


def draining_of(request: Request) -> asyncio.Event | None:
    """Set when the server begins to end; None where the server is not ours."""
    return getattr(request.state, "draining", None)
