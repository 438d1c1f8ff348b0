"""A TCP proxy that misbehaves as told: what stands between us and Postgres, Redis or a client of ours.

    async with Proxy.before(database_url) as proxy:
        database = await open_database(url=proxy.url)
        async with proxy.frozen():
            ...

Needs asyncio alone, so that tests and the scripts of `benchmarks/` can use one and the same.
"""

import asyncio
import ctypes
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

Address = tuple[str, int] | str
Direction = Literal["client", "server"]
# When each piece is due, by the monotonic clock, and the piece; an empty one is the end.
Chunks: TypeAlias = "asyncio.Queue[tuple[float, bytes]]"

_CHUNK_BYTES = 64 * 1024
# Chunks on their way in one direction of one connection; more wait in the sender's own buffers.
_CHUNKS_UNDER_WAY = 256
# l_onoff and l_linger of SO_LINGER: closing sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Of Linux's asm/socket.h; Python does not name them.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
# struct sock_filter: "return 0", which keeps nothing of any packet.
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to the bytes of one direction."""

    latency: float = 0.0
    """Seconds that each chunk takes."""
    jitter: float = 0.0
    """Up to so many seconds more, by chance; the order stays."""
    bandwidth: float = 0.0
    """Bytes per second of one connection; 0: as fast as it goes."""
    slice_bytes: int = 0
    """Bytes of one write; 0: as they come."""
    slice_pause: float = 0.0
    """Seconds between two such writes."""
    close_delay: float = 0.0
    """Seconds from one side's end to the other side's."""


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to `upstream`: (host, port), or a socket's path.

    Faults apply at once, to connections that exist and to new ones, until they are changed or `restore` is called.
    """

    def __init__(self, upstream: Address) -> None:
        self._upstream = upstream
        self._faults: dict[Direction, Faults] = {"client": Faults(), "server": Faults()}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._is_cut_off = False
        self._url: str | None = None
        self.port = 0
        self.accepted = 0
        """Connections so far."""

    @classmethod
    def before(cls, url: str) -> Self:
        """In front of the server of a Postgres, Redis or HTTP URL, which may name a Unix socket."""
        proxy = cls(_address_of(url))
        proxy._url = url
        return proxy

    @property
    def url(self) -> str:
        """The URL given to `before`, by way of the proxy."""
        assert self._url is not None
        parts = urlsplit(self._url)
        credentials = parts.netloc.rpartition("@")
        netloc = f"{''.join(credentials[:2])}127.0.0.1:{self.port}"
        if parts.scheme != "unix":
            kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in {"host", "port"}]
            return urlunsplit((parts.scheme, netloc, parts.path, urlencode(kept), ""))
        return urlunsplit(("redis", netloc, f"/{dict(parse_qsl(parts.query)).get('db', '0')}", "", ""))

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        self._flowing.set()
        tasks = [link.task for link in self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    def slow_down(
        self,
        *,
        towards: Direction | None = None,
        latency: float = 0.0,
        jitter: float = 0.0,
        bandwidth: float = 0.0,
        slice_bytes: int = 0,
        slice_pause: float = 0.0,
        close_delay: float = 0.0,
    ) -> None:
        """Sets the `Faults` of one direction, or of both."""
        faults = Faults(latency, jitter, bandwidth, slice_bytes, slice_pause, close_delay)
        for direction in (towards,) if towards else ("client", "server"):
            self._faults[direction] = faults

    def freeze(self) -> None:
        """Connections stay open and new ones are accepted, but no byte passes: a hung machine."""
        self._flowing.clear()

    def cut_off(self) -> None:
        """As `freeze`, but nothing is acknowledged nor accepted either: a machine without power, or a cut cable."""
        self._flowing.clear()
        program = ctypes.create_string_buffer(_KEEP_NOTHING)
        for way in self._ways():
            way.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
        self._is_cut_off = True

    def refuse(self) -> None:
        """No port, no connections: a stopped server."""
        self._stop_listening()
        self.reset()

    def reset(self) -> None:
        """Ends all connections with RST; new ones work."""
        for link in list(self._links):
            link.reset()

    async def restore(self) -> None:
        """As good as new. What was sent during a freeze arrives now."""
        self.slow_down()
        if self._is_cut_off:
            self._is_cut_off = False
            for way in self._ways():
                way.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._flowing.set()
        if self._listener is None:
            await self._listen()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Frozen inside the block."""
        self.freeze()
        try:
            yield
        finally:
            await self.restore()

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Down inside the block."""
        self.refuse()
        try:
            yield
        finally:
            await self.restore()

    def _ways(self) -> Iterator[Any]:
        """The sockets on the clients' side."""
        if self._listener is not None:
            yield from self._listener.sockets
        for link in self._links:
            if (way := link.way) is not None:
                yield way

    async def wait_until_flowing(self) -> None:
        await self._flowing.wait()

    def faults(self, direction: Direction) -> Faults:
        return self._faults[direction]

    async def _listen(self) -> None:
        # The same port again after an outage, or no client would find the way back.
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        link = _Link(self, task, reader, writer)
        self._links.add(link)
        try:
            await link.run(self._upstream)
        except asyncio.CancelledError:
            # The stream's callback would otherwise report the end of the proxy as an error.
            pass
        finally:
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        task: "asyncio.Task[None]",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.task = task
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]

    async def run(self, upstream: Address) -> None:
        try:
            await self._proxy.wait_until_flowing()
            if isinstance(upstream, str):
                reader, writer = await asyncio.open_unix_connection(upstream)
            else:
                reader, writer = await asyncio.open_connection(*upstream)
            self._writers.append(writer)
            async with asyncio.TaskGroup() as group:
                self._pass_on(group, self._reader, writer, "server")
                self._pass_on(group, reader, self._writers[0], "client")
        except* OSError:
            # What the one side did to us, the other one is to feel.
            self._abort()
        finally:
            for writer in self._writers:
                writer.close()

    @property
    def way(self) -> Any:
        """The socket on the client's side; None once it is closed."""
        writer = self._writers[0]
        return None if writer.is_closing() else writer.get_extra_info("socket")

    def reset(self) -> None:
        self.task.cancel()
        self._abort()

    def _abort(self) -> None:
        for writer in self._writers:
            connection = writer.get_extra_info("socket")
            with suppress(OSError):
                # Some event loops have no socket any more where the other side was faster.
                if connection is not None and connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    def _pass_on(
        self,
        group: asyncio.TaskGroup,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        chunks: Chunks = asyncio.Queue(_CHUNKS_UNDER_WAY)
        group.create_task(self._take(reader, chunks, direction))
        group.create_task(self._give(writer, chunks, direction))

    async def _take(self, reader: asyncio.StreamReader, chunks: Chunks, direction: Direction) -> None:
        while True:
            await self._proxy.wait_until_flowing()
            data = await reader.read(_CHUNK_BYTES)
            faults = self._proxy.faults(direction)
            wait = faults.latency + random.uniform(0, faults.jitter) if data else faults.close_delay
            await chunks.put((monotonic() + wait, data))
            if not data:
                return

    async def _give(self, writer: asyncio.StreamWriter, chunks: Chunks, direction: Direction) -> None:
        while True:
            due, data = await chunks.get()
            if (wait := due - monotonic()) > 0:
                await asyncio.sleep(wait)
            if not data:
                await self._proxy.wait_until_flowing()
                if writer.can_write_eof():
                    writer.write_eof()
                return
            faults = self._proxy.faults(direction)
            size = faults.slice_bytes or (max(1, int(faults.bandwidth / 20)) if faults.bandwidth else len(data))
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                await self._proxy.wait_until_flowing()
                writer.write(piece)
                await writer.drain()
                pause = faults.slice_pause + (len(piece) / faults.bandwidth if faults.bandwidth else 0.0)
                if pause:
                    await asyncio.sleep(pause)


def _address_of(url: str) -> Address:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "unix":
        return parts.path
    if query.get("host", "").startswith("/"):
        return f"{query['host']}/.s.PGSQL.{query.get('port', 5432)}"
    default = {"redis": 6379, "postgresql": 5432, "postgres": 5432, "http": 80}
    return parts.hostname or "127.0.0.1", parts.port or default[parts.scheme]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.1 whose connections are never established, as behind a firewall or a machine without power."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        # Linux drops the SYN once the queue of those waiting to be accepted is full.
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for filler in fillers:
                filler.close()
