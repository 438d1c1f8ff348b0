"""A user's events as they are committed, without a gap over reconnects, restarts and lost messages."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from time import monotonic
from uuid import UUID
from weakref import WeakValueDictionary

from app.kernel.background import is_set_within
from app.kernel.cache import Cache
from app.kernel.database import Database
from app.kernel.fairness.count import FairCount
from app.kernel.ids import UserId
from app.kernel.redis.bus import Bus
from app.users.queries import event_stream as queries
from app.users.records import StreamedEvent, StreamPosition
from app.users.service import events_tag

# Each stream keeps a connection of its client, and reads from time to time.
MOST_STREAMS = 512
MOST_STREAMS_OF_A_USER = 16
# Longer than any transaction that writes events.
_LONGEST_TRANSACTION = timedelta(minutes=1)
# PostgreSQL numbers transactions with 32 bits; this one is before the first that any row names.
_XIDS = 2**32
_OLDEST_XID = 2
_MARK_VERSION = 8
_BATCH = 200
_SCANNED = 1_000
_LOOK_SECONDS = 5.0
_LOOK_WITHOUT_BUS_SECONDS = 1.0
# Between looks, until a transaction has ended that keeps newer events from being sent; it may be any of the server's,
# such as one that makes an index for minutes.
_UNSETTLED_SECONDS = 0.05
_LONGEST_UNSETTLED_SECONDS = 1.0
# A look reads what its user has stored within two minutes, which may be millions of events. Looks of one user that take
# longer than this are followed by a rest of so many times as long: a fifth of a core for all of the user's streams.
_QUICK_LOOK_SECONDS = 0.02
_REST = 4.0
_LONGEST_REST_SECONDS = 60.0


class Looks:
    """The turn of one user's streams to read, one at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rests_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Runs the block once no other one of the user does, and those before have rested."""
        async with self._lock:
            await asyncio.sleep(max(0.0, self._rests_until - monotonic()))
            started = monotonic()
            try:
                yield
            finally:
                ended = monotonic()
                if ended - started > _QUICK_LOOK_SECONDS:
                    self._rests_until = ended + min((ended - started) * _REST, _LONGEST_REST_SECONDS)


class EventWatch:
    """Wakes the streams of a user whose events have changed. One per process; to be made before the bus starts.

    What makes processes forget cached answers wakes streams too, so that storing an event costs nothing more.
    """

    def __init__(self, cache: Cache, bus: Bus) -> None:
        self._bus = bus
        self._streams: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        # Of a user for as long as a stream has them.
        self._looks: WeakValueDictionary[UserId, Looks] = WeakValueDictionary()
        self.open_streams = FairCount(MOST_STREAMS, most_of_one=MOST_STREAMS_OF_A_USER)
        cache.on_forget(self._wake)

    @property
    def poll_interval(self) -> float:
        """Seconds after which a stream looks without having been woken."""
        return _LOOK_SECONDS if self._bus.is_connected else _LOOK_WITHOUT_BUS_SECONDS

    def looks_of(self, user_id: UserId) -> Looks:
        return self._looks.setdefault(user_id, Looks())

    @contextmanager
    def watching(self, user_id: UserId) -> Iterator[asyncio.Event]:
        """An event that is set whenever the user may have new events."""
        tag, event = events_tag(user_id), asyncio.Event()
        self._streams[tag].add(event)
        try:
            yield event
        finally:
            self._streams[tag].discard(event)
            if not self._streams[tag]:
                del self._streams[tag]

    def _wake(self, tags: Iterable[str]) -> None:
        if self._streams:
            for tag in tags:
                for event in self._streams.get(tag, ()):
                    event.set()


async def find_start(
    db: Database, user_id: UserId, last_id: UUID | None, restored_at: datetime | None = None
) -> StreamPosition:
    """Behind the event or at the mark `last_id`, or now.

    Of an event that was deleted its id still tells the time, from which on events may come a second time. So does a
    mark that is older than the restore of the database, `restored_at`, because transactions are numbered anew since.
    """
    async with db.read("users.stream_start") as conn:
        start = await queries.start_of_stream(conn)
        if last_id is None:
            return start
        position = await queries.get_position(conn, user_id, last_id)
    if position is not None:
        return position
    # Clamped before it becomes a time, because an id may hold one that is beyond the year 9999.
    moment = datetime.fromtimestamp(min((last_id.int >> 80) / 1000, start.created_at.timestamp()), UTC)
    xid = _OLDEST_XID
    if last_id.version == _MARK_VERSION and (restored_at is None or moment > restored_at):
        marked = last_id.int % _XIDS
        # Numbers of transactions wrap: of two, the one less than half of all behind the other is the older.
        if (int(start.xid) - marked) % _XIDS < _XIDS // 2:
            xid = marked
    return StreamPosition(moment, str(xid), UUID(int=0))


async def follow_events(
    db: Database,
    watch: EventWatch,
    user_id: UserId,
    position: StreamPosition,
    *,
    kind: str | None = None,
    before_each: Callable[[], Awaitable[None]],
) -> AsyncIterator[StreamedEvent | StreamPosition]:
    """The events of `kind` behind `position`, each once, as soon as they are committed, for ever; after a read whose
    last event is of another kind, the position behind that.

    `before_each` is called right before each read, with no wait in between; what it raises ends it all. Two reads are
    five seconds apart, or longer while streams of the user rest. No connection is held between them.
    """
    looks = watch.looks_of(user_id)
    unsettled_seconds = _UNSETTLED_SECONDS
    with watch.watching(user_id) as changed:
        while True:
            changed.clear()
            async with looks.turn():
                await before_each()
                async with db.read("users.stream_events") as conn:
                    events = await queries.list_streamed_events(
                        conn, user_id, position, longest=_LONGEST_TRANSACTION, limit=_BATCH, scanned=_SCANNED
                    )
            settled = list(takewhile(lambda event: event.is_settled, events))
            for event in settled:
                if kind is None or event.kind == kind:
                    yield event
            if settled:
                position = settled[-1].position()
                if kind is not None and settled[-1].kind != kind:
                    yield position
            if len(settled) < len(events):
                await asyncio.sleep(unsettled_seconds)
                unsettled_seconds = min(unsettled_seconds * 2, _LONGEST_UNSETTLED_SECONDS)
                continue
            unsettled_seconds = _UNSETTLED_SECONDS
            if len(events) < _BATCH:
                await is_set_within(changed, watch.poll_interval)
