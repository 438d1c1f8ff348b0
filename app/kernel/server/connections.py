"""What the connections of one process share: their limits, the sweep that enforces those of time, and the refusals.

No request sets a timer: twice a second the sweep looks at each connection and sees how long it has been in its present
state. So a limit is kept to within half a second, and a request pays nothing for it.
"""

import asyncio
import heapq
import re
from collections.abc import Sequence
from http import HTTPStatus
from itertools import chain
from time import perf_counter
from typing import Protocol
from weakref import WeakKeyDictionary

import orjson
from prometheus_client import Counter, Gauge
from uvicorn.server import ServerState

from app.kernel.errors import PROBLEM_MEDIA_TYPE, AppError
from app.kernel.headers.response_head import SECURITY_HEADERS
from app.kernel.ids import new_id
from app.kernel.oauth_errors import MEDIA_TYPE as OAUTH_MEDIA_TYPE
from app.kernel.oauth_errors import oauth_error
from app.kernel.request.client_address import network_of
from app.kernel.server.known_requests import KnownRequests
from app.kernel.server.refusal_queue import RefusalQueue
from app.kernel.settings import ConnectionSettings

# One round of the sweep, in steps, because ending thousands of connections at once would hold up everybody else.
SWEEP_SECONDS = 0.5
_STEPS = 10
# After the last answer of a connection its client may still be sending; without reading that over, the answer
# would be lost to the reset that follows.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024 * 1024
# A client whose connection has been silent for so long while the process ends will not mind its end.
DRAIN_IDLE_SECONDS = 1.0
# RFC 3986, section 3.2.2, without user information.
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_KNOWN_HOSTS = 1000
# A client may take connections of one that has more than so many times as many; of one that has hardly more, the two
# would take the same ones from each other for ever.
_TOO_MANY_TIMES = 2
# A name of DNS and a port; what is longer is looked at each time.
_MAX_KNOWN_HOST = 262

_connections = Gauge("onehop_http_server_connections", "Open connections.", multiprocess_mode="livesum")
ended = Counter("onehop_http_server_ended_connections", "Connections ended by the server, by reason.", ["reason"])


class Connection(Protocol):
    """What the sweep sees of a connection."""

    @property
    def idle_since(self) -> float | None: ...

    @property
    def unsent(self) -> int:
        """Bytes of answers that its client lets wait."""
        ...

    @property
    def host(self) -> str | None:
        """Address of its client."""
        ...

    @property
    def waits_for_client(self) -> bool:
        """Whether it is open, and no request of it is being worked on."""
        ...

    def check_timeouts(self, now: float) -> None: ...
    def end(self, reason: str) -> None: ...
    def abort(self) -> None: ...


class ConnectionManager:
    """One per process; made with its first connection."""

    def __init__(
        self, connections: set[Connection], limits: ConnectionSettings, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.limits = limits
        self.is_draining = False
        self._connections = connections
        # By the network of their clients.
        self._of_networks: dict[str, set[Connection]] = {}
        self._looks_at_idle_from = 0.0
        self._loop = loop
        self._hosts: set[bytes] = set()
        self._round: list[Connection] = []
        self._step = 1
        # What the present round has found, by client.
        self._unsent: dict[str | None, dict[Connection, int]] = {}
        self.refusal_queue = RefusalQueue(loop)
        self.known_requests = KnownRequests()
        self._sweep_for_ever()

    def _sweep_for_ever(self) -> None:
        if not self._round:
            self._end_largest_unsent()
            self._round = list(self._connections)
            self._step = len(self._round) // _STEPS + 1
            _connections.set(len(self._round))
        self._examine(self._round[-self._step :])
        del self._round[-self._step :]
        self._loop.call_later(SWEEP_SECONDS / _STEPS, self._sweep_for_ever)

    def sweep(self) -> None:
        """Looks at all of them now."""
        self._examine(tuple(self._connections))

    def _examine(self, connections: Sequence[Connection]) -> None:
        now = self._loop.time()
        for connection in connections:
            connection.check_timeouts(now)
            if unsent := connection.unsent:
                self._unsent.setdefault(connection.host, {})[connection] = unsent

    def _end_largest_unsent(self) -> None:
        """Ends connections whose clients do not read, of the client that keeps most first, until the answers of the
        others fit into the memory that there is for them.
        """
        found, self._unsent = self._unsent, {}
        excess = sum(sum(sizes.values()) for sizes in found.values()) - self.limits.max_unsent_bytes
        if excess <= 0:
            return
        clients = [(-sum(sizes.values()), number, sizes) for number, sizes in enumerate(found.values())]
        heapq.heapify(clients)
        while excess > 0:
            kept, number, sizes = heapq.heappop(clients)
            connection, unsent = sizes.popitem()
            ended.labels("unsent").inc()
            connection.abort()
            excess -= unsent
            if sizes:
                heapq.heappush(clients, (kept + unsent, number, sizes))

    def add(self, connection: Connection) -> None:
        self._of_networks.setdefault(network_of(connection.host), set()).add(connection)

    def remove(self, connection: Connection) -> None:
        """The opposite of `add`."""
        network = network_of(connection.host)
        connections = self._of_networks[network]
        connections.discard(connection)
        if not connections:
            del self._of_networks[network]

    def make_room(self, newest: Connection) -> bool:
        """Whether there is room for the `newest` one, if need be after ending some that wait for a client with many
        more, else those that have been idle longest.
        """
        excess = len(self._connections) - self.limits.max_connections
        if excess <= 0:
            return True
        # Some at a time, because looking through all of them costs as much as many requests.
        number = excess + self.limits.max_connections // 50
        return self._end_of_largest(newest, number) or self._end_longest_idle(newest, number) >= excess

    def _end_of_largest(self, newest: Connection, number: int) -> bool:
        """Ends up to `number` connections of the client that has most, but leaves it as many as the newest one's has.
        Whether there were any.
        """
        own = len(self._of_networks[network_of(newest.host)])
        largest = max(self._of_networks.values(), key=len)
        if len(largest) <= own * _TOO_MANY_TIMES:
            return False
        waiting = (connection for connection in largest if connection.waits_for_client)
        # A proxy is a client too: what it sends should be cut off only where nothing of it is idle.
        found = heapq.nsmallest(min(number, len(largest) - own), waiting, key=_idle_longest_first)
        for connection in found:
            connection.end("evicted")
        return bool(found)

    def _end_longest_idle(self, newest: Connection, number: int) -> int:
        """Of clients that have no fewer than the newest one's; how many there were. Where there are none, looking for
        them takes a tenth of the time at most.
        """
        began = perf_counter()
        if began < self._looks_at_idle_from:
            return 0
        own = len(self._of_networks[network_of(newest.host)])
        networks = (connections for connections in self._of_networks.values() if len(connections) >= own)
        idle = [item for item in chain(*networks) if item is not newest and item.idle_since is not None]
        for connection in heapq.nsmallest(number, idle, key=lambda item: item.idle_since or 0.0):
            connection.end("evicted")
        if not idle:
            ended_at = perf_counter()
            self._looks_at_idle_from = ended_at + 9 * (ended_at - began)
        return len(idle)

    def is_over_hard_cap(self) -> bool:
        """Whether even those that are being told of it are too many."""
        return len(self._connections) > self.limits.max_connections * 1.1 + 1

    def knows_host(self, host: bytes) -> bool:
        """Whether this is a valid `Host` (RFC 9110, section 7.2); the same ones come again and again."""
        if host in self._hosts:
            return True
        if _AUTHORITY.fullmatch(host) is None:
            return False
        if len(self._hosts) < _KNOWN_HOSTS and len(host) <= _MAX_KNOWN_HOST:
            self._hosts.add(host)
        return True


def _idle_longest_first(connection: Connection) -> tuple[bool, float]:
    idle_since = connection.idle_since
    return idle_since is None, idle_since or 0.0


_managers: WeakKeyDictionary[ServerState, ConnectionManager] = WeakKeyDictionary()


def manager_of(state: ServerState, limits: ConnectionSettings, loop: asyncio.AbstractEventLoop) -> ConnectionManager:
    """The manager of this server's connections."""
    manager = _managers.get(state)
    if manager is None:
        manager = _managers[state] = ConnectionManager(state.connections, limits, loop)  # type: ignore[arg-type]  # all are ours
    return manager


def refusal(error: AppError, headers: Sequence[tuple[bytes, bytes]], *, is_oauth: bool = False) -> bytes:
    """The whole last answer of a connection: `error` as a problem, or in OAuth's form, sent below the application."""
    request_id = new_id().hex
    problem = error.as_problem(request_id)
    status, body = oauth_error(problem) if is_oauth else (error.status, orjson.dumps(problem))
    fields = {
        "content-type": OAUTH_MEDIA_TYPE if is_oauth else PROBLEM_MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-request-id": request_id,
        **error.headers,
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in fields.items())]
    more = b"".join(b"%s: %s\r\n" % field for field in (*SECURITY_HEADERS, *headers))
    return "\r\n".join([*lines, ""]).encode() + more + b"\r\n" + body
