"""What one process knows of one caller's quota."""

from asyncio import Event
from dataclasses import dataclass, field
from math import ceil
from time import monotonic

from app.kernel.errors import TooManyRequests

# A lease lasts about so many seconds at the rate of the moment; the next is asked for when a quarter of it is left.
_LEASE_SECONDS = 2.0
_LOW_SHARE = 0.25
# Of the quota: the first units of a new caller are not asked for one by one, and no caller leases more than the tenth.
_CREDIT_SHARE = 0.01
_LARGEST_LEASE_SHARE = 0.1
# No client is told to come back sooner than in a second, so there is no sense in asking Redis sooner.
_SHORTEST_REFUSAL = 1.0
# What is used of this share of what comes back meanwhile is not worth telling Redis.
_NEGLIGIBLE_SHARE = 0.02
_SHORTEST_MEASURE = 0.01
# Twenty times 0.05 is not quite one.
_ROUNDING = 1e-6


class QuotaExceeded(TooManyRequests):
    """The caller's quota is used up. `RateLimit` tells what is left; wait for the seconds of `Retry-After`."""

    code = "quota_exceeded"
    title = "Quota exceeded"


@dataclass(frozen=True, slots=True)
class Policy:
    """`quota` units in `window` seconds: so many at once, and as many again in each window, evenly."""

    name: str
    quota: int
    window: int
    rate: float = field(init=False)
    credit: float = field(init=False)
    header: tuple[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", self.quota / self.window)
        object.__setattr__(self, "credit", float(int(self.quota * _CREDIT_SHARE)))
        header = f'"{self.name}";q={self.quota};w={self.window}'
        object.__setattr__(self, "header", (b"ratelimit-policy", header.encode()))


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a bucket tells its store: `charged` units it has given out on credit (negative: it gives leased ones back),
    and that it wants `want` more units, but none if there are not `need`.
    """

    key: str
    policy: Policy
    charged: float
    need: float
    want: float


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The store's answer: the leased units, how many are left (less than none after too much credit), and in how many
    seconds there is what was needed.
    """

    units: float
    remaining: float
    wait: float


class QuotaBucket:
    """`tokens` may be spent as long as they do not fall below `low`; then the slow way asks for more."""

    __slots__ = (
        "_asked",
        "_headers",
        "_is_fresh",
        "_needed_then",
        "_owed",
        "_reviewed",
        "_shared",
        "_shown",
        "_since",
        "answered",
        "due",
        "is_returned",
        "key",
        "low",
        "needed",
        "policy",
        "queued",
        "refused_cost",
        "refused_until",
        "tokens",
    )

    def __init__(self, policy: Policy, key: str) -> None:
        self.policy = policy
        self.key = key
        self._shared = policy.quota - policy.credit
        self._start(policy.credit)
        # Until then nothing that costs so much has a chance.
        self.refused_until = 0.0
        self.refused_cost = 0.0
        # The waiters: the largest need, the sum of the needs, and what tells them that there is an answer.
        self.needed = 0.0
        self._needed_then = 0.0
        self.queued = 0.0
        self.answered: Event | None = None
        # For the reviews: when the next is due, and whether there is anything to give back.
        self.due = 0.0
        self.is_returned = False
        self._shown = -1
        self._headers: tuple[tuple[bytes, bytes], ...] = ()

    def _start(self, credit: float) -> None:
        """With units on credit: spent at once, and told to the store with the first order."""
        self.tokens = self._owed = self._asked = self._reviewed = credit
        self.low = credit * 0.5
        self._is_fresh = True
        self._since = monotonic()

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11)."""
        remaining = int(self._shared + self.tokens + _ROUNDING)
        if remaining != self._shown:
            self._render(remaining, ceil(remaining / self.policy.rate))
        return self._headers

    def seconds_refused(self) -> int:
        """For `Retry-After`, which must not be shorter than the window in the headers."""
        seconds = max(1, ceil(self.refused_until - monotonic()))
        self._render(int(self._shared + self.tokens), seconds)
        return seconds

    def _render(self, remaining: int, seconds: int) -> None:
        self._shown = remaining
        value = b'"%b";r=%d;t=%d' % (self.policy.name.encode(), max(0, remaining), max(1, seconds))
        self._headers = (self.policy.header, (b"ratelimit", value))

    def order(self) -> LeaseRequest:
        """The order for what is used and wanted now. `low` is off until the answer comes."""
        now = monotonic()
        policy = self.policy
        used = self._asked - self.tokens
        rate = used / max(now - self._since, _SHORTEST_MEASURE)
        want = max(rate * _LEASE_SECONDS, policy.credit, 1.0)
        want = min(want, policy.quota * _LARGEST_LEASE_SHARE) + self.queued
        self._needed_then = self.needed
        # Whole units: two fractions would serve no request.
        need = max(0, ceil(self.needed - self.tokens)) if self.needed else 0
        self.needed = self.queued = 0.0
        self.low = 0.0
        self._is_fresh = False
        charged, self._owed = self._owed, 0.0
        self._asked = self.tokens
        self._since = now
        return LeaseRequest(self.key, policy, charged, need, max(need, ceil(want)))

    def returning_order(self) -> LeaseRequest:
        """The order that gives all tokens back."""
        charged = self._owed - self.tokens
        self.tokens = self._owed = self.low = self._asked = 0.0
        self.is_returned = True
        return LeaseRequest(self.key, self.policy, charged, 0.0, 0.0)

    def receive(self, order: LeaseRequest, grant: LeaseGrant) -> None:
        self._shared = max(0.0, grant.remaining)
        if order.want == 0.0:
            if self.tokens == 0.0:
                credit = float(int(min(self.policy.credit, self._shared)))
                self._shared -= credit
                self._start(credit)
            return
        self.tokens += grant.units
        self._asked += grant.units
        # After a grant that is less than wished there is little left, and asking early would be asking often.
        self.low = self.tokens * _LOW_SHARE if grant.units >= order.want else 0.0
        if grant.units < order.need:
            self.refused_until = monotonic() + max(grant.wait, _SHORTEST_REFUSAL)
            # The store gives no less than one. Not what the whole units come to, which is more than was asked for if a
            # fraction of one is left: the request would not count as refused, and ask again at once, over and over.
            self.refused_cost = self._needed_then if order.need > 1 else 0.0

    def is_refused(self, cost: float) -> bool:
        """Whether the store is known to have too little for `cost`."""
        return self.refused_until > monotonic() and cost >= self.refused_cost

    def was_used(self) -> bool:
        """Whether anything was spent since this was last asked."""
        was_used = self.tokens != self._reviewed
        self._reviewed = self.tokens
        return was_used

    def is_negligible(self) -> bool:
        """Whether so little was spent, all of it on credit, that the store need not know."""
        spent = self._owed - self.tokens
        return self._is_fresh and spent <= self.policy.rate * _NEGLIGIBLE_SHARE * (monotonic() - self._since)

    def seconds_until_full(self) -> float:
        return max(0.0, (self.policy.quota - self._shared - self.tokens) / self.policy.rate)

    def charge(self, cost: float) -> None:
        """Spends for a request that was let in already; it may go below zero, which those that follow wait for.

        Raises:
            QuotaExceeded: the quota is known to be used up.
        """
        if self.tokens < cost and self.is_refused(cost):
            raise QuotaExceeded(retry_after=self.seconds_refused())
        self.tokens -= cost
