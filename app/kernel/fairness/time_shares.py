"""How much of the process's time each caller uses, so that none takes most of it while others come."""

from collections.abc import Awaitable, Generator, Hashable
from time import perf_counter
from typing import Any

# Of the event loop's time. What is not measured, such as reading from sockets, comes to as much again; hashing a
# password on the same core then takes a third longer.
_SHARE = 0.15
# Of the event loop's time too: so much at once is a page that sends its requests together.
_BURST_SECONDS = 0.1
# A caller waits no longer than this for what one request of its own has used.
_MAX_DEBT_SECONDS = 1.0
_CONTENDED_SECONDS = 1.0
_SMOOTHING = 0.2


class _Use:
    """`paid_at` is when all that the caller used is paid for by its share; `usual` is what a request of it takes.
    `charged` is what the `begun` requests that have not ended were charged.
    """

    __slots__ = ("begun", "charged", "paid_at", "usual")

    def __init__(self) -> None:
        self.paid_at = 0.0
        self.usual = 0.0
        self.begun = 0
        self.charged = 0.0


class TimeShares:
    """GCRA in seconds of computing: while others come, a caller's next request begins when its share of the time has
    paid for what it used, but for a burst. A caller alone has no limit.

    A request is charged at its beginning what is usual for its caller, and at its end what it really took, so that
    many which begin at one moment are not free. All times are those of `perf_counter`, in seconds.
    """

    def __init__(self, *, share: float = _SHARE, burst: float = _BURST_SECONDS) -> None:
        self._share = share
        self._burst = burst / share
        # Whose request came last. The fast path sets it too, for which a look at the clock would be too dear.
        self.last_caller: Hashable = None
        self._contended_until = 0.0
        self._uses: dict[Hashable, _Use] = {}

    def note(self, caller: Hashable, now: float) -> None:
        """The caller has come."""
        last = self.last_caller
        if last is not caller:
            if last is not None and last != caller:
                self._contended_until = now + _CONTENDED_SECONDS
            self.last_caller = caller

    def is_contended(self, now: float) -> bool:
        """Whether more than one caller has come within the last second."""
        return now < self._contended_until

    def delay(self, caller: Hashable, now: float) -> float:
        """In how many seconds the caller's next request may begin while others come; 0: now."""
        use = self._uses.get(caller)
        return 0.0 if use is None else max(0.0, use.paid_at - now - self._burst)

    def begin(self, caller: Hashable, now: float) -> None:
        """Charges a request that begins."""
        use = self._use_of(caller)
        use.begun += 1
        use.charged += use.usual
        self._pay(use, use.usual, now)

    def end(self, caller: Hashable, seconds: float, now: float) -> None:
        """Charges a request that has begun what it took: `seconds` of the event loop, less what it was charged then.

        Of requests under way each counts as charged the same, as they come to the same in all.
        """
        use = self._use_of(caller)
        charged = use.charged / use.begun
        use.begun -= 1
        use.charged -= charged
        self._pay(use, seconds - charged, now)
        use.usual += (seconds - use.usual) * _SMOOTHING

    def charge(self, caller: Hashable, seconds: float, now: float) -> None:
        """Charges what belongs to no request that begins or ends."""
        self._pay(self._use_of(caller), seconds, now)

    def _use_of(self, caller: Hashable) -> _Use:
        use = self._uses.get(caller)
        if use is None:
            use = self._uses[caller] = _Use()
        return use

    def _pay(self, use: _Use, seconds: float, now: float) -> None:
        paid_at = max(use.paid_at, now) + seconds / self._share
        use.paid_at = min(paid_at, now + self._burst + _MAX_DEBT_SECONDS)

    def forget(self, now: float) -> None:
        """Drops the callers that have paid for everything, and have no request under way."""
        for caller in [caller for caller, use in self._uses.items() if use.paid_at <= now and not use.begun]:
            del self._uses[caller]


class StepTimer:
    """Awaits something and adds up its steps: the time in which the event loop does nothing else. What waits between
    two steps costs nothing.
    """

    __slots__ = ("_began", "_next", "_seconds", "_steps", "_taken")

    def __init__(self, work: Awaitable[Any]) -> None:
        self._steps = work.__await__()
        self._next = self._steps.__next__
        self._seconds = 0.0
        self._taken = 0.0
        # When the step at hand began; 0: there is none.
        self._began = 0.0

    def seconds(self) -> float:
        """So far, the step at hand included."""
        return self._seconds + (perf_counter() - self._began if self._began else 0.0)

    def take(self) -> float:
        """Since the last call of this; the step at hand included."""
        seconds = self.seconds()
        taken, self._taken = self._taken, seconds
        return seconds - taken

    def __await__(self) -> Generator[Any, Any, Any]:
        # A generator would be one call more for each step.
        return self  # type: ignore[return-value]  # `await` needs no more than an iterator with `throw` and `close`

    def __next__(self) -> Any:
        self._began = began = perf_counter()
        try:
            return self._next()
        finally:
            self._seconds += perf_counter() - began
            self._began = 0.0

    def throw(self, *error: Any) -> Any:
        self._began = began = perf_counter()
        try:
            return self._steps.throw(*error)
        finally:
            self._seconds += perf_counter() - began
            self._began = 0.0

    def close(self) -> None:
        self._steps.close()
