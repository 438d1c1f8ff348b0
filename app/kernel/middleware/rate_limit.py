"""Charges each request to its caller's quota, or to its network's before the caller is known."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.http.prepared_problem import PreparedProblem
from app.kernel.middleware.security_headers import SecurityHeaders
from app.kernel.observability.probes import PROBE_PATHS
from app.kernel.observability.telemetry import request_id_var
from app.kernel.rate_limits import QuotaBucket, QuotaExceeded, RateLimits
from app.kernel.request.client_address import client_address, network_of
from app.kernel.request.state import RequestState, state_of
from app.kernel.settings import HttpSettings


class NetworkQuota:
    """The quota of a network, for what comes without a valid token: log-ins, registrations, guesses of tokens."""

    def __init__(self, limits: RateLimits, settings: HttpSettings) -> None:
        self._limits = limits
        self._settings = settings
        self._refusal = _refusal(settings)

    async def admit(self, state: RequestState, send: Send) -> bool:
        """Charges a unit to the network; False: the request has been answered with 429."""
        network = network_of(client_address(state, self._settings))
        key = f"limits:network:{network}"
        bucket = self._limits.buckets.get(key) or self._limits.open(self._limits.network, key)
        state.network = network
        state.quota = bucket
        state.paid = 1.0
        if await self._limits.spend(bucket, 1.0):
            return True
        await _refuse(self._refusal, bucket, send)
        return False

    def give_back(self, state: RequestState) -> None:
        """The caller is known now, and its quota is charged instead."""
        if state.quota is not None:
            state.quota.tokens += state.paid
            state.quota = None


class RateLimit:
    """Stands behind the authentication, and in front of the response cache: an answer from memory is charged too, but
    only `cached_cost`. What a request costs beyond one unit is charged where its route is known.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: RateLimits,
        networks: NetworkQuota,
        settings: HttpSettings,
        *,
        cached_paths: Collection[str],
        cached_cost: float,
    ) -> None:
        self._app = app
        self._limits = limits
        self._networks = networks
        self._refusal = _refusal(settings)
        self._costs = dict.fromkeys(cached_paths, cached_cost)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        principal = state.principal
        if principal is not None:
            await state.assign_slot()
            cost = self._costs.get(scope["path"], 1.0) if scope["method"] == "GET" else 1.0
            limits = self._limits
            bucket = limits.buckets.get(principal.quota_key)
            if bucket is None:
                bucket = limits.open(limits.caller, principal.quota_key)
            tokens = bucket.tokens - cost
            state.quota = bucket
            state.paid = cost
            if tokens >= bucket.low:
                bucket.tokens = tokens
            elif not await limits.spend(bucket, cost) and scope["path"] not in PROBE_PATHS:
                await _refuse(self._refusal, bucket, send)
                return
        elif state.quota is None and scope["path"] not in PROBE_PATHS:
            if not await self._networks.admit(state, send):
                return
            await state.assign_slot()
        await self._app(scope, receive, send)


def _refusal(settings: HttpSettings) -> PreparedProblem:
    return PreparedProblem(QuotaExceeded(), SecurityHeaders(settings).added_to(()))


async def _refuse(refusal: PreparedProblem, bucket: QuotaBucket, send: Send) -> None:
    await refusal.send((request_id_var.get() or "unknown").encode(), bucket.seconds_refused(), send)
