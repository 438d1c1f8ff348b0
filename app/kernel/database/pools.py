"""How connections are made: what each of them has, and which of several hosts it leads to."""

import asyncio
import socket
from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from app.kernel.database.failures import OwnConnectionsBusy, PoolExhausted
from app.kernel.database.units import Row
from app.kernel.fairness.callers import OWN_WAIT_SECONDS, caller_var
from app.kernel.fairness.slots import FairSlots
from app.kernel.settings import DatabaseSettings

CONNECT_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
# A host that has not answered for so long (RFC 8305 calls it the connection attempt delay) gets company.
_ATTEMPT_DELAY_SECONDS = 0.1
_DEFAULT_PORT = 5432
# As many times as long as for a connection: a machine that acknowledges nothing meanwhile is gone. One whose server is
# slow, or stopped, acknowledges.
_PATIENCE = 3
_KNOWS_TRANSACTION_TIMEOUT = (17,)
# One connection in so many is for reads alone.
_READERS_SHARE = 5
# While it is at work on a statement, the server looks so often whether its client is still there.
_LOOK_FOR_CLIENT = "1s"


class Connector:
    """Makes connections and pools to one DSN, which may name several hosts: `//a:5432,b:5432/name`."""

    def __init__(self, dsn: str, settings: DatabaseSettings, application_name: str) -> None:
        self._dsn = dsn
        self._settings = settings
        self._application_name = application_name
        self._hosts = Hosts(dsn)

    async def connect(self, unit: str) -> Any:
        """One connection outside of any pool, which nothing but its use bounds."""
        return await self._hosts.connect(
            timeout=self._settings.connect_timeout,
            command_timeout=self._settings.statement_timeout + 0.5,
            server_settings={"application_name": f"{self._application_name}:{unit}"},
        )

    async def pool(self, size: int, *, command_timeout: float | None) -> "Pool":
        """A pool without connections; they are made when they are needed. Nothing takes them away but a failure."""
        session = {"application_name": self._application_name, "TimeZone": "UTC"}
        if self._settings.session_settings:
            session |= {
                "statement_timeout": _milliseconds(self._settings.statement_timeout),
                "lock_timeout": _milliseconds(self._settings.lock_timeout),
                "idle_in_transaction_session_timeout": _milliseconds(self._settings.idle_in_transaction_timeout),
                "client_connection_check_interval": _LOOK_FOR_CLIENT,
                "jit": "off",
                # One connection uses one core, so that shares of connections are shares of the server.
                "max_parallel_workers_per_gather": "0",
            }
        pool = await asyncpg.create_pool(
            self._dsn,
            connect=self._hosts.connect,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=0,
            max_queries=1_000_000,
            timeout=self._settings.connect_timeout,
            command_timeout=command_timeout,
            statement_cache_size=512,
            max_cached_statement_lifetime=0,
            server_settings=session,
            init=self._bound_transactions,
            reset=_no_reset,
        )
        return Pool(pool, size)

    async def _bound_transactions(self, connection: Any) -> None:
        # Not a startup parameter, because an older server refuses those that it does not know.
        if self._settings.session_settings and connection.get_server_version() >= _KNOWS_TRANSACTION_TIMEOUT:
            timeout = _milliseconds(self._settings.transaction_timeout)
            await connection.execute("SELECT set_config('transaction_timeout', $1, false)", timeout)


class Hosts:
    """Those that a DSN names, of which one takes writes at a time."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._hosts = _hosts_of(dsn)
        self._defaults = _defaults_of(dsn, self._hosts)
        # The one that made the last connection, and those that have said nothing since a request waited for them.
        self._preferred = 0
        self._silent: set[int] = set()

    async def connect(self, *_: Any, **options: Any) -> Any:
        """A connection to the first host that is there and takes writes; the arguments are asyncpg's."""
        connection = await self._connect(self._defaults | options)
        _notice_loss(connection, _PATIENCE * options["timeout"])
        return connection

    async def _connect(self, options: dict[str, Any]) -> Any:
        """The same.

        asyncpg's own way through several hosts has one time-out for all of them, which a host that swallows packets
        uses up alone. Here each one has its own, and the next one need not wait for it. Those that were silent the last
        time are asked at the end, all at once: one of them may only have been slow.
        """
        dsn = self._dsn
        if len(self._hosts) == 1:
            ((host, port),) = self._hosts
            if host:
                options |= {"host": host, "port": port}
            return await asyncpg.connect(dsn, **options)
        steps = self._steps()
        attempts: dict[asyncio.Task[Any], int] = {}
        failure: BaseException = OSError("no host")
        try:
            while steps or attempts:
                for index in steps.popleft() if steps else ():
                    host, port = self._hosts[index]
                    attempts[asyncio.create_task(asyncpg.connect(dsn, host=host, port=port, **options))] = index
                finished, _ = await asyncio.wait(
                    attempts,
                    timeout=_ATTEMPT_DELAY_SECONDS if steps else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not finished:
                    self._silent.update(attempts.values())
                for attempt in finished:
                    error = attempt.exception()
                    self._note(attempts.pop(attempt), error)
                    if error is None:
                        return attempt.result()
                    failure = error
            raise failure
        except asyncio.CancelledError:
            # A caller without time for all of them begins with the others the next time.
            self._silent.update(attempts.values())
            raise
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_discard)
                attempt.cancel()

    def _steps(self) -> deque[list[int]]:
        """The order in which the servers are asked."""
        order = sorted(range(len(self._hosts)), key=lambda index: index != self._preferred)
        steps = deque([index] for index in order if index not in self._silent)
        if self._silent:
            steps.append([index for index in order if index in self._silent])
        return steps

    def _note(self, index: int, error: BaseException | None) -> None:
        """Learns from how an attempt ended."""
        if isinstance(error, TimeoutError):
            self._silent.add(index)
            return
        self._silent.discard(index)
        if error is None:
            self._preferred = index


class Pool:
    """asyncpg's pool behind slots of our own: its queue lets a newcomer take what another waiter was woken for, and
    one caller take everything. Writes get four fifths of the connections, so that reads go on while writes wait for a
    lock or for a standby.
    """

    def __init__(self, pool: "asyncpg.Pool[Row]", size: int) -> None:
        self._pool = pool
        self._slots = FairSlots(size, max_writes=size - size // _READERS_SHARE)
        self.terminate = pool.terminate

    @property
    def connections(self) -> tuple[int, int]:
        """How many there are, and how many of them are idle."""
        return self._pool.get_size(), self._pool.get_idle_size()

    def expire(self) -> None:
        """No connection that there is now will be leased again."""
        # asyncpg's is a coroutine that never waits, and the next caller must not be faster.
        with suppress(StopIteration):
            self._pool.expire_connections().send(None)
        # Otherwise asyncpg bids each farewell when it is next due, and waits for an answer.
        for holder in self._pool._holders:  # type: ignore[attr-defined]  # noqa: SLF001 - nothing else knows the idle ones.
            if holder.is_idle():
                holder.terminate()

    async def acquire(self, timeout: float, caller: Hashable = None, *, writes: bool = False) -> Any:
        """A connection for `caller`, made if there is none; each step may take `timeout` seconds, as may its release.

        A caller that waits for its own connections may do so for `OWN_WAIT_SECONDS`.

        Raises:
            PoolExhausted: there was no turn in that time. TimeoutError and what else making a connection raises.
        """
        if not self._slots.try_acquire(caller, writes=writes):
            await self._wait(timeout, caller, writes=writes)
        try:
            # The time-out also bounds asyncpg's release, which would otherwise wait for a frozen server for ever.
            return await self._pool.acquire(timeout=timeout)
        except BaseException:
            self._slots.release(caller, writes=writes)
            raise

    async def release(self, connection: Any, caller: Hashable = None, *, writes: bool = False) -> None:
        """Gives back what was acquired, with the same `caller` and `writes`."""
        try:
            await self._pool.release(connection)
        finally:
            self._slots.release(caller, writes=writes)

    async def _wait(self, timeout: float, caller: Hashable, *, writes: bool) -> None:
        waits_for_itself = self._slots.waits_for_itself(caller)
        started = monotonic()
        slot = self._slots.wait(caller, writes=writes)
        try:
            async with asyncio.timeout(max(timeout, OWN_WAIT_SECONDS) if waits_for_itself else timeout):
                await slot
        except TimeoutError as error:
            self._slots.withdraw(caller, slot, writes=writes)
            raise (OwnConnectionsBusy if waits_for_itself else PoolExhausted) from error
        except BaseException:
            self._slots.withdraw(caller, slot, writes=writes)
            raise
        finally:
            request = caller_var.get()
            if waits_for_itself and request is not None:
                request.waited += monotonic() - started

    async def close(self) -> None:
        """Waits for the units under way, at most five seconds, then closes all connections."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except (TimeoutError, asyncpg.InterfaceError):
            self._pool.terminate()


def _hosts_of(dsn: str) -> list[tuple[str, int]]:
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    named = parts.netloc.rpartition("@")[2] or ",".join(query.get("host", []))
    ports = ",".join(query.get("port", [])).split(",")
    hosts = []
    for number, item in enumerate(named.split(",")):
        host, port = item, ports[min(number, len(ports) - 1)]
        # What follows the last colon is a port, unless that colon stands inside the brackets of an IPv6 address.
        if ":" in item.rpartition("]")[2]:
            host, _, port = item.rpartition(":")
        hosts.append((unquote(host).strip("[]"), int(port or _DEFAULT_PORT)))
    return hosts


def _defaults_of(dsn: str, hosts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Of several hosts the one that takes writes is meant, unless the DSN says otherwise."""
    is_told = not {"service", "target_session_attrs"}.isdisjoint(parse_qs(urlsplit(dsn).query))
    return {} if is_told or len(hosts) == 1 else {"target_session_attrs": "read-write"}


def _notice_loss(connection: Any, seconds: float) -> None:
    """Breaks the connection if what is sent on it is not acknowledged for so long (TCP_USER_TIMEOUT, RFC 5482)."""
    way: socket.socket = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no public name for it.
    if way.family == socket.AF_UNIX or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    # It may be lost already, which its first use tells; uvloop says so with the one, asyncio with the other.
    with suppress(ValueError, OSError):
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _discard(attempt: "asyncio.Task[Any]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


async def _no_reset(_: Any) -> None:
    """Nothing of ours outlives a transaction on a connection, so releasing one costs no statement."""
