"""Lets in as many requests as can be worked on, lets a few wait shortly, and refuses the rest early and cheaply."""

from collections.abc import Collection
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.fairness.limiter import AdaptiveLimit, FixedLimit, Limiter, RequestClass
from app.kernel.fairness.ticket import AdmissionStage, AdmissionTicket
from app.kernel.fairness.time_shares import StepTimer, TimeShares
from app.kernel.observability.probes import PROBE_PATHS
from app.kernel.request.state import RequestState, state_of
from app.kernel.settings import HttpSettings

# What reads cannot take from writes and writes not from reads; the rest goes to the first request.
_RESERVED_FRACTION = 0.4
_LOWEST_LIMIT = 16
_FIRST_LIMIT = 32
_READS = frozenset({"GET", "HEAD"})


class Admission:
    """Reads and writes have slots by what latency allows, requests that hash a password as many as there are hashes at
    one time. A request that waits for something outside of this process gives its slot back
    (`RequestState.release_slot`).

    `cached_paths` are the paths of answers that may be in memory; only what is not found there needs a slot.
    `hashing_routes` are methods and paths of requests that hash a password.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        *,
        cached_paths: Collection[str],
        shares: TimeShares,
        hashing_routes: Collection[tuple[str, str]],
        hashing_slots: int,
    ) -> None:
        self._app = app
        # Whether a request lately found no slot; only then is it worth asking `admits` first.
        self.is_saturated = False
        highest = settings.max_in_flight
        limit = AdaptiveLimit(lowest=min(_LOWEST_LIMIT, highest), start=min(_FIRST_LIMIT, highest), highest=highest)
        mark_saturated = self._mark_saturated
        parked = 2 * settings.max_waiting
        work = Limiter(
            "work",
            limit,
            queue_size=settings.max_waiting,
            max_wait=settings.max_wait,
            max_parked=parked,
            shares=shares,
            on_full=mark_saturated,
        )
        self._reads = RequestClass("read", work, _RESERVED_FRACTION)
        self._writes = RequestClass("write", work, _RESERVED_FRACTION)
        self._hashing = RequestClass(
            "log_in",
            Limiter(
                "log_in",
                FixedLimit(hashing_slots),
                queue_size=0,
                max_wait=0,
                max_parked=parked,
                shares=shares,
                on_full=mark_saturated,
            ),
        )
        self._writes.hashing = self._hashing
        self._limiters = (work, self._hashing.limiter)
        self.shares = shares
        self._cached_paths = frozenset(cached_paths)
        self._hashing_routes = frozenset(hashing_routes)

    def sample(self) -> None:
        """Brings the metrics up to date."""
        for limiter in self._limiters:
            limiter.sample()
        self.shares.forget(perf_counter())
        self.is_saturated = not all(limiter.has_free_slot for limiter in self._limiters)

    def admits(self, state: RequestState, scope: Scope) -> bool:
        """Gives a request a slot, or else room in the queue, before anything is done for it; False: neither."""
        if scope["path"] in PROBE_PATHS:
            return True
        ticket = state.admission = AdmissionTicket(self._class_of(scope))
        return ticket.try_enter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBE_PATHS:
            await self._app(scope, receive, send)
            return
        state = state_of(scope)
        ticket = state.admission
        if ticket is None:
            ticket = state.admission = AdmissionTicket(self._class_of(scope))
            # What is found in memory needs no slot.
            if not (scope["path"] in self._cached_paths and scope["method"] in _READS) and not ticket.try_acquire():
                await state.acquire_slot()
        elif ticket.stage is AdmissionStage.QUEUED:
            await state.acquire_slot()
        # The outermost layer releases the slot, because the server may have taken it (`admits`).
        timer = ticket.timer = StepTimer(self._app(scope, receive, send))
        await timer

    def _mark_saturated(self) -> None:
        self.is_saturated = True

    def _class_of(self, scope: Scope) -> RequestClass:
        if scope["method"] in _READS:
            return self._reads
        return self._hashing if (scope["method"], scope["path"]) in self._hashing_routes else self._writes
