"""How many requests are worked on at once, and who gets the next free place. Knows nothing of HTTP."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

from app.kernel.callers import OWN_WAIT_SECONDS

_limit = Gauge("app_admission_limit", "Current limit of concurrent requests.", ["pool"], multiprocess_mode="livesum")
_in_flight = Gauge("app_admission_inflight", "Requests in flight, by class.", ["class"], multiprocess_mode="livesum")
_queue_seconds = Histogram(
    "app_admission_queue_seconds", "Time waited for admission, including rejected requests, in seconds.", ["class"]
)
_rejected = Counter("app_admission_rejected", "Rejected requests, by reason.", ["class", "reason"])

# Above so many times the usual latency there are too many requests inside.
_TOLERANCE = 1.25
# Up to this multiple of the tolerance is harmless, however much quicker a single request would be.
_PROMPT_SECONDS = 0.01
_WINDOW_SECONDS = 0.1
_WINDOW_SAMPLES = 10
_SMOOTHING = 0.2
_STEP = 2
# More places than so many times those that are used would only let in a crowd all at once.
_HEADROOM = 1.5
_USUAL_WEIGHT = 0.01
# So many requests in calm times tell what is usual.
_KNOWN_AFTER = 100
# What is answered from memory says nothing of the load.
_INSTANT_SECONDS = 0.0002
# A refusal tells that there is too much to do; so long after it nobody sits down to wait. Whose place comes free asks
# again before it would be missed, and waiting costs work and time.
_CROWDED_SECONDS = 0.25
# Once in so long a few may sit down all the same. When they are all there are, the overload is over: those who are
# refused and ask again at once would keep the seats closed for ever.
_TRIAL_EVERY_SECONDS = 1.0
_TRIAL_SEATS = 16
# While all places are taken, a caller may hold the half of them, or so many; unless no other has come for so long.
_LEAST_OF_CALLER = 4
_ALONE_AFTER_SECONDS = 1.0


def _ignore() -> None:
    pass


class _Usual:
    """How long a kind of request takes, and how many in calm times have told so."""

    __slots__ = ("calm", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calm = 0


class AdaptiveLimit:
    """Gradient2 of Netflix's concurrency-limits: as many places as do not make requests slower than usual.

    Two things differ from the original. Each latency is compared with what is usual for its own kind of request, since
    a mix of light and heavy ones has no usual latency. And what is usual is not learned while requests are refused,
    unless there are as few places as may be: a lasting overload would become the measure of itself. Nor is it
    forgotten: fewer places make requests quicker than they are in calm times, and allow for fewer still.
    """

    def __init__(self, *, lowest: int, start: int, highest: int) -> None:
        self.value = start
        self._exact = float(start)
        self._lowest = lowest
        self._highest = highest
        self._usual: dict[Hashable, _Usual] = {}
        self._expected = 0.0
        self._measured = 0.0
        self._samples = 0
        self._most_used = 0
        self._window_ends = 0.0

    def observe(self, kind: Hashable, seconds: float, now: float, *, used: int, is_crowded: bool) -> None:
        """A request of this kind was answered after `seconds`, when `used` places were taken."""
        usual = self._usual.get(kind)
        if usual is None:
            usual = self._usual[kind] = _Usual(seconds)
        self._expected += max(usual.seconds, _PROMPT_SECONDS)
        self._measured += seconds
        self._samples += 1
        self._most_used = max(self._most_used, used)
        if not is_crowded:
            usual.calm += 1
            usual.seconds += (seconds - usual.seconds) * max(_USUAL_WEIGHT, 1 / usual.calm)
        elif self.value <= self._lowest if seconds > usual.seconds else usual.calm < _KNOWN_AFTER:
            usual.seconds += (seconds - usual.seconds) * _USUAL_WEIGHT
        if now >= self._window_ends and self._samples >= _WINDOW_SAMPLES:
            self._adapt(now)

    def _adapt(self, now: float) -> None:
        gradient = min(1.0, max(0.5, _TOLERANCE * self._expected / self._measured))
        if gradient < 1:
            self._exact = max(self._lowest, self._exact * (1 - _SMOOTHING * (1 - gradient)))
        elif self._most_used * _HEADROOM >= self.value:
            self._exact = min(self._highest, self._exact + _STEP)
        self.value = int(self._exact)
        self._expected = self._measured = 0.0
        self._samples = self._most_used = 0
        self._window_ends = now + _WINDOW_SECONDS


class FixedLimit:
    """As many places as somebody said."""

    def __init__(self, value: int) -> None:
        self.value = value

    def observe(self, kind: Hashable, seconds: float, now: float, *, used: int, is_crowded: bool) -> None: ...


class Share:
    """One class of requests at a gate. It may have `part` of the places even when all others are taken."""

    __slots__ = (
        "coming",
        "gate",
        "name",
        "over_part",
        "part",
        "queue_full",
        "used",
        "waited_seconds",
        "waited_too_long",
        "waiting",
    )

    def __init__(self, name: str, gate: "Gate", part: float = 0.0) -> None:
        self.name = name
        self.gate = gate
        self.part = part
        self.used = 0
        # Those that have been promised a seat and have not sat down yet.
        self.coming = 0
        self.waiting: deque[tuple[asyncio.Future[bool], float]] = deque()
        self.queue_full = 0
        self.over_part = 0
        self.waited_too_long = 0
        self.waited_seconds = _queue_seconds.labels(name)
        gate.shares.append(self)


class Gate:
    """Places for several classes of requests, and seats for a few that wait.

    Who waits is let in in the order of coming. Once somebody had to be refused the seats are closed for a while, but
    for a trial now and then: who waits in a lasting overload only comes later, and so does everybody behind.
    """

    def __init__(
        self,
        name: str,
        limit: AdaptiveLimit | FixedLimit,
        *,
        seats: int,
        max_wait: float,
        max_parked: int | None = None,
        on_full: Callable[[], None] = _ignore,
    ) -> None:
        """`on_full` is called whenever a request finds no place.

        `max_parked` requests (by default as many as `seats`) may wait for a place of their own caller's part, for
        `OWN_WAIT_SECONDS` if that is longer than `max_wait`.
        """
        self.name = name
        self.used = 0
        self.limit = limit
        self.shares: list[Share] = []
        self._seats = seats
        self._max_wait = max_wait
        self._max_own_wait = max(max_wait, OWN_WAIT_SECONDS)
        self._max_parked = seats if max_parked is None else max_parked
        self._on_full = on_full
        # Places by caller, as far as callers are known.
        self.held: dict[Hashable, int] = {}
        self._last_caller: Hashable = None
        # Requests that gave up the place they had, by caller, in the order of coming.
        self._parked: dict[Hashable, deque[tuple[asyncio.Future[None], Share]]] = {}
        self._shared_until = 0.0
        self._crowded_until = 0.0
        self._next_trial = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def sample(self) -> None:
        """Brings the metrics up to date."""
        _limit.labels(self.name).set(self.limit.value)
        for share in self.shares:
            _in_flight.labels(share.name).set(share.used)
            _rejected.labels(share.name, "queue_full").inc(share.queue_full)
            _rejected.labels(share.name, "waited_too_long").inc(share.waited_too_long)
            _rejected.labels(share.name, "over_part").inc(share.over_part)
            share.queue_full = share.waited_too_long = share.over_part = 0

    @property
    def has_place(self) -> bool:
        return self.used < self.limit.value

    def enters(self, share: Share) -> bool:
        """Takes a place if one is free."""
        if self.used < self.limit.value or share.used < share.part * self.limit.value:
            self.used += 1
            share.used += 1
            return True
        self._on_full()
        return False

    async def hold(self, share: Share, caller: Hashable) -> bool:
        """Notes whose place it is that was taken.

        A caller that has as many as are fair while others want some gives it up, and waits until one comes free that no
        other caller waits for. False: none did in time, and the place is gone.
        """
        if caller != self._last_caller:
            if self._last_caller is not None:
                self._shared_until = perf_counter() + _ALONE_AFTER_SECONDS
            self._last_caller = caller
        if self.used < self.limit.value or self._has_fair_part_left(caller):
            self.held[caller] = self.held.get(caller, 0) + 1
            return True
        self.leave(share)
        # As with places: half of what the others leave.
        free = self._max_parked - sum(map(len, self._parked.values()))
        if len(self._parked.get(caller, ())) < free and await self._gets_one_later(share, caller):
            return True
        share.over_part += 1
        return False

    async def _gets_one_later(self, share: Share, caller: Hashable) -> bool:
        """Waits for a place of the caller's own part; False: none came free in time."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parked = self._parked.setdefault(caller, deque())
        parked.append((place, share))
        try:
            async with asyncio.timeout(self._max_own_wait):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                # It came in this very moment.
                self.leave(share)
                self.release(caller)
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        finally:
            with suppress(ValueError):
                parked.remove((place, share))
            if not parked and self._parked.get(caller) is parked:
                del self._parked[caller]
        return True

    def _has_fair_part_left(self, caller: Hashable) -> bool:
        fair = max(_LEAST_OF_CALLER, self.limit.value // 2)
        return self.held.get(caller, 0) < fair or perf_counter() >= self._shared_until

    def release(self, caller: Hashable) -> None:
        """The opposite of `hold`, after `leave`."""
        held = self.held[caller] - 1
        if held:
            self.held[caller] = held
        else:
            del self.held[caller]
        if self._parked:
            self._let_in_parked()

    def _let_in_parked(self) -> None:
        """Gives the places that no other caller waits for to those that gave one up."""
        for caller, parked in list(self._parked.items()):
            while parked and self._has_fair_part_left(caller):
                place, share = parked[0]
                if place.cancelled():
                    parked.popleft()
                elif self.has_place and self.enters(share):
                    parked.popleft()
                    self.held[caller] = self.held.get(caller, 0) + 1
                    place.set_result(None)
                else:
                    return

    def has_seat(self, share: Share) -> bool:
        """Whether somebody may wait; who may not counts as refused."""
        now = perf_counter()
        seats = self._seats
        if now < self._crowded_until:
            seats = min(seats, _TRIAL_SEATS) if now >= self._next_trial else 0
        if len(share.waiting) + share.coming < seats:
            return True
        self._crowded_until = now + _CROWDED_SECONDS
        if seats:
            self._next_trial = now + _TRIAL_EVERY_SECONDS
        share.queue_full += 1
        return False

    async def waits(self, share: Share) -> bool:
        """Waits for a place; False: none came in time."""
        now = perf_counter()
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        entry = (place, now + self._max_wait)
        share.waiting.append(entry)
        if self._timer is None:
            self._timer = loop.call_later(self._max_wait, self._expire)
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.done():
                if place.result():
                    self.leave(share)
            else:
                # Between the cancellation and this line the request may have been skipped and dropped already.
                with suppress(ValueError):
                    share.waiting.remove(entry)
            raise
        finally:
            share.waited_seconds.observe(perf_counter() - now)

    def leave(self, share: Share) -> None:
        """Gives a place back, to somebody who waits if there is one."""
        self.used -= 1
        share.used -= 1
        for other in self.shares:
            if other.waiting:
                self._let_in()
                return

    def observe(self, kind: Hashable, seconds: float, now: float) -> None:
        """Tells the limit how long a request took."""
        if seconds > _INSTANT_SECONDS:
            is_crowded = now < self._crowded_until or not self.has_place
            self.limit.observe(kind, seconds, now, used=self.used, is_crowded=is_crowded)

    def _let_in(self) -> None:
        while waiting := [share for share in self.shares if share.waiting]:
            # The class that has the least of its part comes first.
            share = min(waiting, key=lambda share: share.used / (share.part or 1.0))
            place, _ = share.waiting[0]
            if place.cancelled():
                # The client went away in this turn of the loop, before its task could take itself off the queue.
                share.waiting.popleft()
            elif self.enters(share):
                share.waiting.popleft()
                place.set_result(True)
            else:
                return

    def _expire(self) -> None:
        """Turns away those who have waited too long."""
        now = perf_counter()
        self._timer = None
        for share in self.shares:
            while share.waiting and share.waiting[0][1] <= now:
                place, _ = share.waiting.popleft()
                if place.cancelled():
                    continue
                place.set_result(False)
                share.waited_too_long += 1
                self._crowded_until = now + _CROWDED_SECONDS
        ends = [share.waiting[0][1] for share in self.shares if share.waiting]
        if ends:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(ends) - now), self._expire)
