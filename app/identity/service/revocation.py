"""What every process must refuse although its signature is good, known to all before the caller is told that it is
done.

A revocation is a row, written in the transaction of its cause. After the commit it is pushed over the bus, and every
process says that it has it; only then does the request answer. Nets under that, each for the failure of the one above:

- Every process reads new rows twice a second. A process that gets no acknowledgement waits that long before it answers.
- While the bus is down in a process, or it is unknown what it has missed (it was just connected, or the process stood
  still), none of its requests is trusted without a read of the rows that began after the request came; requests that
  wait at the same time share one read.
- If Postgres cannot be asked then, the answer is 503, never a guess.

When a revocation matters no more is told by the clock of Postgres alone, which each read brings along. A clock of this
machine that is set, forward or back, neither forgets one nor brings a token back to life. When the clock of Postgres
itself is set, as after a failover, all rows are read again before the process goes by it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from uuid import UUID

import msgspec
from prometheus_client import Counter, Histogram

from app.identity.queries.sessions import list_revocations
from app.identity.records.tokens import Revocation
from app.kernel.background import Background
from app.kernel.clock import Clock, SteadyClock, elapsed
from app.kernel.database import Database, ReadConn, Tx
from app.kernel.ids import new_id
from app.kernel.observability.telemetry import get_logger
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

_CHANNEL = "onehop:revocations"
_ACK_CHANNEL = "onehop:revocations:ack"
_ACK_SECONDS = 0.25
_FORGET_SECONDS = 300.0
# Between two reads the clock of Postgres has to go as far as that of this machine, but for the round trips.
_LARGEST_DRIFT = 5.0
# Rows are read again for so many seconds, because a transaction may commit after a younger one.
_OVERLAP = 30.0
_FROM_THE_BEGINNING = 1e9
# A process that stood still for longer, as a paused container does, may wake up with requests before news.
_LATENESS_CHECK_SECONDS = 0.25
_MAX_LATENESS_CHECK_GAP = 1.0

_logger = get_logger(__name__)
_acknowledged_seconds = Histogram(
    "onehop_identity_revocation_seconds", "Time until all processes acknowledged a revocation, in seconds."
)
_unacknowledged_total = Counter(
    "onehop_identity_revocations_unacknowledged", "Revocations that were delivered by the poll only."
)


class _Announcement(msgspec.Struct, frozen=True, array_like=True):
    id: UUID
    revocations: list[Revocation]


class RevocationFeed:
    """One per API process."""

    def __init__(self, db: Database, bus: Bus, clock: Clock, *, poll_seconds: float) -> None:
        self._db = db
        self._bus = bus
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._sessions: dict[UUID, datetime] = {}
        self._api_keys: dict[UUID, datetime] = {}
        self._versions: dict[UUID, tuple[int, datetime]] = {}
        self._acks: dict[UUID, tuple[int, asyncio.Future[None]]] = {}
        # When the newest complete read began, and what it was good for: the bus connected, the process awake.
        self._read_at: float | None = None
        # What Postgres told in that read, and how far this machine's clock was then.
        self._told: tuple[datetime, float] | None = None
        self._lateness_checked_at = monotonic()
        self._epoch = 0
        self._complete_epoch = -1
        self._reading: asyncio.Task[None] | None = None
        self._reads_begun = 0
        self._reads_done = 0
        self._background = Background()
        self._forgot_at = monotonic()
        self._lateness_timer: asyncio.TimerHandle | None = None
        bus.subscribe(_CHANNEL, self._on_announcement, on_up=self._begin_epoch)
        bus.subscribe(_ACK_CHANNEL, self._on_ack)

    def start(self) -> None:
        self._background.repeat(self._poll, name="identity.revocations", every=self._poll_seconds)
        self._lateness_checked_at = monotonic()
        self._check_lateness()

    async def close(self) -> None:
        if self._lateness_timer is not None:
            self._lateness_timer.cancel()
        await self._background.close()

    @property
    def is_complete(self) -> bool:
        """Whether what this process knows is all there is, without asking."""
        return self._bus.is_connected and self._complete_epoch == self._epoch

    def is_revoked(self, *, session_id: UUID | None, api_key_id: UUID | None, user_id: UUID, version: int) -> bool:
        """Whether a token of this session or key, issued at `version` of its account, is dead."""
        if not (self._sessions or self._api_keys or self._versions):
            # Most of the time nothing is revoked, and this runs for each request.
            return False
        if session_id in self._sessions or api_key_id in self._api_keys:
            return True
        minimum = self._versions.get(user_id)
        return minimum is not None and version < minimum[0]

    def database_now(self) -> datetime:
        """The time of Postgres, as the newest read and a clock that is never set tell it."""
        if self._told is None:
            return self._clock.now()
        told, at = self._told
        return told + timedelta(seconds=elapsed() - at)

    async def refresh(self) -> None:
        """Returns after a read of the rows that began after this call.

        Raises:
            Unavailable: Postgres could not be asked.
        """
        wanted = self._reads_begun + 1
        while self._reads_done < wanted:
            # A read under way may miss what was written since it began, so another follows; all waiters share it.
            if self._reading is None:
                self._reading = self._background.spawn(self._read())
            await asyncio.shield(self._reading)

    def announce(self, tx: Tx, revocations: Sequence[Revocation]) -> None:
        """After the commit of `tx`, which wrote the rows, waits until every process refuses them."""
        if not revocations:
            return

        async def tell() -> None:
            await self._tell(list(revocations))

        tx.after_commit(tell)

    async def _tell(self, revocations: list[Revocation]) -> None:
        self._apply(revocations)
        announcement = _Announcement(new_id(), revocations)
        done = asyncio.get_running_loop().create_future()
        self._acks[announcement.id] = (0, done)
        try:
            with _acknowledged_seconds.time():
                receivers = await self._bus.publish(_CHANNEL, msgspec.msgpack.encode(announcement))
                count, _ = self._acks[announcement.id]
                if count < receivers:
                    self._acks[announcement.id] = (count - receivers, done)
                    async with asyncio.timeout(_ACK_SECONDS):
                        await done
        except (RedisUnavailable, TimeoutError):
            _unacknowledged_total.inc()
            await asyncio.sleep(self._poll_seconds * 1.5)
        finally:
            del self._acks[announcement.id]

    def _on_announcement(self, payload: bytes) -> None:
        announcement = msgspec.msgpack.decode(payload, type=_Announcement)
        self._apply(announcement.revocations)
        self._background.spawn(self._acknowledge(announcement.id))

    async def _acknowledge(self, announcement_id: UUID) -> None:
        with suppress(RedisUnavailable):
            await self._bus.publish(_ACK_CHANNEL, announcement_id.bytes)

    def _on_ack(self, payload: bytes) -> None:
        announcement_id = UUID(bytes=payload)
        waiting = self._acks.get(announcement_id)
        if waiting is None:
            return
        # Counts up from zero until the number of receivers is known, then from minus that number to zero.
        count = waiting[0] + 1
        self._acks[announcement_id] = (count, waiting[1])
        if count == 0 and not waiting[1].done():
            waiting[1].set_result(None)

    def _apply(self, revocations: Sequence[Revocation]) -> None:
        for revocation in revocations:
            if revocation.kind == "session":
                self._sessions[revocation.subject] = revocation.expires_at
            elif revocation.kind == "api_key":
                self._api_keys[revocation.subject] = revocation.expires_at
            else:
                version, _ = self._versions.get(revocation.subject, (0, revocation.expires_at))
                self._versions[revocation.subject] = (max(version, revocation.version), revocation.expires_at)

    async def _read(self) -> None:
        self._reads_begun += 1
        number = self._reads_begun
        epoch = self._epoch
        began_at = monotonic()
        age = began_at - self._read_at + _OVERLAP if self._read_at is not None else _FROM_THE_BEGINNING
        try:
            async with self._db.read("identity.revocations") as conn:
                await self._read_rows(conn, age)
            self._read_at = began_at
            self._complete_epoch = epoch
            self._reads_done = number
        finally:
            self._reading = None

    async def _read_rows(self, conn: ReadConn, age: float) -> None:
        asked_at, expected = elapsed(), self.database_now()
        told, revocations = await list_revocations(conn, age)
        ahead = (told - expected).total_seconds()
        if self._told is not None and not -_LARGEST_DRIFT < ahead < elapsed() - asked_at + _LARGEST_DRIFT:
            _logger.warning("identity.database_clock_set", seconds=round(ahead, 3))
            asked_at = elapsed()
            told, revocations = await list_revocations(conn, _FROM_THE_BEGINNING)
        self._apply(revocations)
        answered_at = elapsed()
        self._told = (told, asked_at)
        if isinstance(self._clock, SteadyClock):
            # Behind the rows, so that no token comes back to life before they are known.
            self._clock.learn(told, asked_at, answered_at)

    async def _poll(self) -> None:
        await self.refresh()
        if monotonic() - self._forgot_at > _FORGET_SECONDS and self._told is not None:
            self._forgot_at = monotonic()
            self._forget_expired(self._told[0])

    def _forget_expired(self, now: datetime) -> None:
        """Drops what no living token can be refused for any more at `now` of Postgres. The rows go by `cleanup`,
        because a request that revokes a token relies on this loop to come round in time.
        """
        for known in (self._sessions, self._api_keys):
            for subject in [subject for subject, end in known.items() if end < now]:
                del known[subject]
        for subject in [subject for subject, (_, end) in self._versions.items() if end < now]:
            del self._versions[subject]

    def _begin_epoch(self) -> None:
        """From here on, only a read that has yet to begin tells what was missed."""
        self._epoch += 1

    def _check_lateness(self) -> None:
        # A timer runs before the tasks that waiting requests become, so a late one is noticed before they are served.
        now = monotonic()
        if now - self._lateness_checked_at > _MAX_LATENESS_CHECK_GAP:
            self._begin_epoch()
        self._lateness_checked_at = now
        self._lateness_timer = asyncio.get_running_loop().call_later(_LATENESS_CHECK_SECONDS, self._check_lateness)
