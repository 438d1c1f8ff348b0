"""How many requests are worked on at once, and which one gets the next free slot. Knows nothing of HTTP."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

from app.kernel.fairness.callers import OWN_WAIT_SECONDS
from app.kernel.fairness.count import FairCount
from app.kernel.fairness.time_shares import TimeShares

_limit = Gauge("onehop_admission_limit", "Current limit of concurrent requests.", ["pool"], multiprocess_mode="livesum")
_in_flight = Gauge("onehop_admission_inflight", "Requests in flight, by class.", ["class"], multiprocess_mode="livesum")
_queue_seconds = Histogram(
    "onehop_admission_queue_seconds", "Time waited for admission, including rejected requests, in seconds.", ["class"]
)
_rejected = Counter("onehop_admission_rejected", "Rejected requests, by reason.", ["class", "reason"])

# Latency above this multiple of the baseline means too much concurrency.
_TOLERANCE = 1.25
# Up to this multiple of the tolerance is harmless, however much quicker a single request would be.
_PROMPT_SECONDS = 0.01
_WINDOW_SECONDS = 0.1
_WINDOW_SAMPLES = 10
_SMOOTHING = 0.2
_STEP = 2
# The limit grows only up to this multiple of the slots in use; more would admit a burst all at once.
_HEADROOM = 1.5
_USUAL_WEIGHT = 0.01
# So many requests in calm times tell what is usual.
_KNOWN_AFTER = 100
# What is answered from memory says nothing of the load.
_INSTANT_SECONDS = 0.0002
# After a rejection, don't queue for this long: a retrying client reaches a free slot before it is missed, and queueing
# costs work and latency.
_CROWDED_SECONDS = 0.25
# This often a few requests may queue all the same. If no more than these arrive, the overload is over; without trials,
# clients that retry at once would keep the queue closed for ever.
_TRIAL_EVERY_SECONDS = 1.0
_TRIAL_QUEUE_SIZE = 16
# While all slots are taken, a caller may hold half of them, or so many; unless no other has come lately.
_MIN_SLOTS_OF_CALLER = 4
# Requests that have given their slots up until their bodies have come, each with up to a mebibyte of it.
_MOST_UPLOADS = 512
_MOST_UPLOADS_OF_CALLER = 128
# A stream that waits for its caller's share looks this often whether the others have gone.
_PACE_SECONDS = 0.25


def _ignore() -> None:
    pass


class _Usual:
    """How long a kind of request takes, and how many in calm times have told so."""

    __slots__ = ("calm", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calm = 0


class AdaptiveLimit:
    """Gradient2 of Netflix's concurrency-limits: as many slots as do not make requests slower than usual.

    Two things differ from the original. Each latency is compared with what is usual for its own kind of request, since
    a mix of light and heavy ones has no usual latency. And what is usual is not learned while requests are refused,
    unless there are as few slots as may be: a lasting overload would become the measure of itself. Nor is it
    forgotten: fewer slots make requests quicker than they are in calm times, and allow for fewer still.
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
        """A request of this kind was answered after `seconds`, when `used` slots were taken."""
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
    """A fixed number of slots."""

    def __init__(self, value: int) -> None:
        self.value = value

    def observe(self, kind: Hashable, seconds: float, now: float, *, used: int, is_crowded: bool) -> None: ...


class RequestClass:
    """One class of requests at a limiter. `reserved` is the fraction of the slots that other classes cannot use.

    `hashing`: the class of those of its requests that turn out to hash a password.
    """

    __slots__ = (
        "hashing",
        "limiter",
        "name",
        "over_fair_share",
        "promised",
        "queue_full",
        "reserved",
        "used",
        "waited_seconds",
        "waited_too_long",
        "waiting",
    )

    def __init__(self, name: str, limiter: "Limiter", reserved: float = 0.0) -> None:
        self.name = name
        self.limiter = limiter
        self.reserved = reserved
        self.hashing: RequestClass | None = None
        self.used = 0
        # Requests that have been promised room in the queue and are not in it yet.
        self.promised = 0
        self.waiting: deque[tuple[asyncio.Future[bool], float]] = deque()
        self.queue_full = 0
        self.over_fair_share = 0
        self.waited_too_long = 0
        self.waited_seconds = _queue_seconds.labels(name)
        limiter.classes.append(self)


class Limiter:
    """Slots for several classes of requests, and a short queue.

    The queue is first in, first out. After a rejection it is closed for a while, but for a trial now and then: in a
    lasting overload, queueing only makes every request later.
    """

    def __init__(
        self,
        name: str,
        limit: AdaptiveLimit | FixedLimit,
        *,
        queue_size: int,
        max_wait: float,
        max_parked: int | None = None,
        shares: TimeShares | None = None,
        on_full: Callable[[], None] = _ignore,
    ) -> None:
        """`on_full` is called whenever a request finds no slot. `shares` are those of the whole process.

        `max_parked` requests (by default `queue_size`) may wait for a slot of their caller's fair share, for
        `OWN_WAIT_SECONDS` if that is longer than `max_wait`.
        """
        self.name = name
        self.used = 0
        self.limit = limit
        self.classes: list[RequestClass] = []
        self._queue_size = queue_size
        self._max_wait = max_wait
        self._max_own_wait = max(max_wait, OWN_WAIT_SECONDS)
        self._max_parked = queue_size if max_parked is None else max_parked
        self._on_full = on_full
        # Slots by caller, as far as callers are known.
        self.held: dict[Hashable, int] = {}
        # Requests without a slot whose bodies are on their way.
        self.uploads = FairCount(_MOST_UPLOADS, most_of_one=_MOST_UPLOADS_OF_CALLER)
        self._shares = TimeShares() if shares is None else shares
        # Requests that gave up the slot they had, by caller, first come, first served.
        self._parked: dict[Hashable, deque[tuple[asyncio.Future[None], RequestClass]]] = {}
        self._parked_timer: asyncio.TimerHandle | None = None
        self._crowded_until = 0.0
        self._next_trial = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def sample(self) -> None:
        """Brings the metrics up to date."""
        _limit.labels(self.name).set(self.limit.value)
        for request_class in self.classes:
            _in_flight.labels(request_class.name).set(request_class.used)
            _rejected.labels(request_class.name, "queue_full").inc(request_class.queue_full)
            _rejected.labels(request_class.name, "waited_too_long").inc(request_class.waited_too_long)
            _rejected.labels(request_class.name, "over_fair_share").inc(request_class.over_fair_share)
            request_class.queue_full = request_class.waited_too_long = request_class.over_fair_share = 0

    @property
    def has_free_slot(self) -> bool:
        return self.used < self.limit.value

    def try_acquire(self, request_class: RequestClass) -> bool:
        """Takes a slot if one is free."""
        if self.used < self.limit.value or request_class.used < request_class.reserved * self.limit.value:
            self.used += 1
            request_class.used += 1
            return True
        self._on_full()
        return False

    async def assign(self, request_class: RequestClass, caller: Hashable) -> bool:
        """Counts the acquired slot as the caller's.

        While others come, a caller that has its fair share of the slots or of the time gives it up, and waits until one
        comes free that no other caller waits for. False: none did in time, and the slot is gone.
        """
        now = perf_counter()
        self._shares.note(caller, now)
        if not self._shares.is_contended(now) or (
            caller not in self._parked
            and (self.used < self.limit.value or self._has_fair_share_left(caller))
            and not self._shares.delay(caller, now)
        ):
            self._begin(caller, now)
            return True
        self.release(request_class)
        # As with slots: half of what the others leave.
        free = self._max_parked - sum(map(len, self._parked.values()))
        if len(self._parked.get(caller, ())) < free and await self._wait_for_fair_share(request_class, caller):
            return True
        request_class.over_fair_share += 1
        return False

    async def _wait_for_fair_share(self, request_class: RequestClass, caller: Hashable) -> bool:
        """Waits for a slot of the caller's fair share; False: none came free in time."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parked = self._parked.setdefault(caller, deque())
        parked.append((slot, request_class))
        self._admit_parked()
        try:
            async with asyncio.timeout(self._max_own_wait):
                await slot
        except (TimeoutError, asyncio.CancelledError) as error:
            if slot.done() and not slot.cancelled():
                # It came in this very moment.
                self.release(request_class)
                self.unassign(caller)
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        finally:
            with suppress(ValueError):
                parked.remove((slot, request_class))
            if not parked and self._parked.get(caller) is parked:
                del self._parked[caller]
        return True

    async def pace(self, caller: Hashable, seconds: float) -> None:
        """Waits while others come until a share has paid for what its caller used, then charges `seconds` without
        a slot: of many streams that wait, one goes on.
        """
        shares = self._shares
        now = perf_counter()
        while shares.is_contended(now) and (delay := shares.delay(caller, now)):
            await asyncio.sleep(min(delay, _PACE_SECONDS))
            now = perf_counter()
        shares.charge(caller, seconds, now)

    def _has_fair_share_left(self, caller: Hashable) -> bool:
        return self.held.get(caller, 0) < max(_MIN_SLOTS_OF_CALLER, self.limit.value // 2)

    def _begin(self, caller: Hashable, now: float) -> None:
        self.held[caller] = self.held.get(caller, 0) + 1
        self._shares.begin(caller, now)

    def unassign(self, caller: Hashable, seconds: float = 0.0) -> None:
        """The opposite of `assign`, after `release`. The request took `seconds` of the event loop."""
        self._shares.end(caller, seconds, perf_counter())
        held = self.held[caller] - 1
        if held:
            self.held[caller] = held
        else:
            del self.held[caller]
        if self._parked:
            self._admit_parked()

    def _admit_parked(self) -> None:
        """Gives the slots that no other caller waits for to those that gave one up, and looks again in time."""
        soonest = self._start_parked()
        if self._parked_timer is not None:
            self._parked_timer.cancel()
            self._parked_timer = None
        if self._parked:
            self._parked_timer = asyncio.get_running_loop().call_later(soonest, self._admit_parked)

    def _start_parked(self) -> float:
        """In how many seconds the next one has paid, at the latest when it gives up."""
        now = perf_counter()
        is_contended = self._shares.is_contended(now)
        soonest = self._max_own_wait
        for caller, parked in list(self._parked.items()):
            while parked and (not is_contended or self._has_fair_share_left(caller)):
                slot, request_class = parked[0]
                if slot.done():
                    parked.popleft()
                    continue
                delay = self._shares.delay(caller, now)
                if is_contended and delay:
                    soonest = min(soonest, delay)
                    break
                if not (self.has_free_slot and self.try_acquire(request_class)):
                    return soonest
                parked.popleft()
                self._begin(caller, now)
                slot.set_result(None)
        return soonest

    def can_queue(self, request_class: RequestClass) -> bool:
        """Whether a request may wait in the queue; if not, it counts as rejected."""
        now = perf_counter()
        queue_size = self._queue_size
        if now < self._crowded_until:
            queue_size = min(queue_size, _TRIAL_QUEUE_SIZE) if now >= self._next_trial else 0
        if len(request_class.waiting) + request_class.promised < queue_size:
            return True
        self._crowded_until = now + _CROWDED_SECONDS
        if queue_size:
            self._next_trial = now + _TRIAL_EVERY_SECONDS
        request_class.queue_full += 1
        return False

    async def wait(self, request_class: RequestClass) -> bool:
        """Waits for a slot; False: none came in time."""
        now = perf_counter()
        loop = asyncio.get_running_loop()
        slot: asyncio.Future[bool] = loop.create_future()
        entry = (slot, now + self._max_wait)
        request_class.waiting.append(entry)
        if self._timer is None:
            self._timer = loop.call_later(self._max_wait, self._expire)
        try:
            return await slot
        except asyncio.CancelledError:
            if not slot.cancelled() and slot.done():
                if slot.result():
                    self.release(request_class)
            else:
                # Between the cancellation and this line the request may have been skipped and dropped already.
                with suppress(ValueError):
                    request_class.waiting.remove(entry)
            raise
        finally:
            request_class.waited_seconds.observe(perf_counter() - now)

    def release(self, request_class: RequestClass) -> None:
        """Releases a slot; the next request in the queue gets it, or one that gave its slot up."""
        self.used -= 1
        request_class.used -= 1
        for other in self.classes:
            if other.waiting:
                self._admit_waiting()
                return
        if self._parked:
            self._admit_parked()

    def observe(self, kind: Hashable, seconds: float, now: float) -> None:
        """Tells the limit how long a request took."""
        if seconds > _INSTANT_SECONDS:
            is_crowded = now < self._crowded_until or not self.has_free_slot
            self.limit.observe(kind, seconds, now, used=self.used, is_crowded=is_crowded)

    def _admit_waiting(self) -> None:
        while waiting := [request_class for request_class in self.classes if request_class.waiting]:
            # The class that uses the least of its reserved slots comes first.
            request_class = min(waiting, key=lambda request_class: request_class.used / (request_class.reserved or 1.0))
            slot, _ = request_class.waiting[0]
            if slot.cancelled():
                # The client went away in this turn of the loop, before its task could take itself off the queue.
                request_class.waiting.popleft()
            elif self.try_acquire(request_class):
                request_class.waiting.popleft()
                slot.set_result(True)
            else:
                return

    def _expire(self) -> None:
        """Rejects the requests that have waited too long."""
        now = perf_counter()
        self._timer = None
        for request_class in self.classes:
            while request_class.waiting and request_class.waiting[0][1] <= now:
                slot, _ = request_class.waiting.popleft()
                if slot.cancelled():
                    continue
                slot.set_result(False)
                request_class.waited_too_long += 1
                self._crowded_until = now + _CROWDED_SECONDS
        ends = [request_class.waiting[0][1] for request_class in self.classes if request_class.waiting]
        if ends:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(ends) - now), self._expire)
