"""Names of webhook receivers, looked up where a slow name server delays only its own user.

The system's look-up cannot be interrupted, so it has threads of its own, of which one user never holds more than a few:
the event loop's own ones also find our servers, and are few.
"""

import asyncio
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from time import monotonic
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from app.jobs.service.outages import NO_NAME_SERVER
from app.jobs.service.reachability import NamesUnavailable, Reachability
from app.kernel.ids import UserId

MOST_LOOKUPS = 64
MOST_LOOKUPS_OF_A_USER = 2
_SECONDS = 5.0

# Whose delivery looks a name up; aiohttp tells a resolver nothing but the name.
owner_var: ContextVar[UserId | None] = ContextVar("webhook_owner", default=None)


class LookupsBusy(Exception):
    """All look-ups that this user may have at a time are under way; that says nothing of the receiver."""


class Resolver(AbstractResolver):
    """One per process."""

    def __init__(self, reachability: Reachability) -> None:
        self._reachability = reachability
        self._threads = ThreadPoolExecutor(MOST_LOOKUPS, thread_name_prefix="webhook-names")
        self._under_way: Counter[UserId | None] = Counter()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of a name.

        Raises:
            LookupsBusy
            NamesUnavailable: our name servers answer nothing, whatever the name.
            TimeoutError, OSError: those of this name say nothing, or know no such name.
        """
        owner = owner_var.get()
        if self._under_way[owner] >= MOST_LOOKUPS_OF_A_USER or self._under_way.total() >= MOST_LOOKUPS:
            raise LookupsBusy
        self._under_way[owner] += 1
        loop = asyncio.get_running_loop()
        asked = self._threads.submit(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)

        def ended(_: Any) -> None:
            # It counts for as long as it has its thread, however soon its delivery gave up.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end, owner)

        asked.add_done_callback(ended)
        started = monotonic()
        try:
            async with asyncio.timeout(_SECONDS):
                found = await asyncio.wrap_future(asked)
        except OSError as error:
            # A time-out is one of them.
            if not isinstance(error, socket.gaierror) or error.errno in NO_NAME_SERVER:
                if self._reachability.is_outage("names", host, started):
                    raise NamesUnavailable(str(error) or "no answer") from error
            else:
                self._reachability.record_reached("names", host)
            raise
        self._reachability.record_reached("names", host)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _end(self, owner: UserId | None) -> None:
        self._under_way[owner] -= 1
        self._under_way = +self._under_way
