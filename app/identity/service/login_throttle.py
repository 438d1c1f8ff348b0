"""Brute force is slowed down before a password is hashed: one call reserves the attempt, so parallel ones cannot
overrun.

Buckets, by the HMAC of what they are about, alike for known and unknown addresses:

- e-mail and network (/24, /64): five attempts, then a pause of 1, 2, 4 … 900 s after each;
- e-mail, from anywhere: twenty in 15 minutes;
- address of a client (/32, /64), then its site (/24, /48): a quota for an hour, then one attempt a minute, or every
  ten seconds;
- account: a hundred failures in 30 days close it to strangers until the password is reset;
- current password: five, then pauses, of one session, so that the thief of a token brakes no other session;
- TOTP code, of a known device, or of an account and a network: five, then pauses; a hundred in 30 days, which all known
  devices of an account share, and a hundred that all strangers share;
- code sent by e-mail: a hundred in 30 days for an address, which all known devices share, and a hundred that all
  strangers share, besides the quota of a client's network; each code allows five tries of either by itself;
- recovery code, likewise: twenty, then pauses of 1, 2, 4, 8, 10 s, because 120 bits cannot be guessed;
- mail: ten requests an hour of a purpose, an address and a network for e-mail; the rest is dropped in silence. What is
  sent is counted where it is sent.

A client with the device cookie of an earlier success has buckets of its own instead of those that strangers share, in
its network or anywhere, so that a stranger cannot lock it out. A success gives back what it had reserved. Without
Redis each process counts for itself, by the same rules.
"""

import hmac
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil

from prometheus_client import Counter

from app.identity.errors import TooManyAttempts
from app.kernel.clock import Clock
from app.kernel.errors import Unavailable
from app.kernel.fairness.disconnects import ClientGone
from app.kernel.ids import UserId
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable, Script
from app.kernel.request.client_address import network_of, site_of
from app.kernel.sealing import Keys

_attempts_total = Counter("onehop_identity_attempts", "Attempts to prove an identity.", ["outcome"])
_DAY = 86_400
_IPV4_PREFIX = 24
# A /24 or /48 may be one office or a whole town: it has the quota of so many addresses.
_ADDRESSES_OF_A_SITE = 4
_MAIL_REQUESTS_AN_HOUR = 10
# A code is right with a probability of 3 in a million, because those of three time steps are taken.
_CODES_A_MONTH = 100
_MAX_LOCAL_BUCKETS = 10_000
# 2 to this power is longer than any longest pause in units of the first one.
_MAX_DOUBLINGS = 20

# Per bucket: key; limit, window, first pause, longest pause (seconds), and whether each attempt begins the window anew.
# A pause of 0 lasts until the window ends.
# State: number of attempts, and until when there are no more. Answer: 0, or the microseconds to wait.
_RESERVE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local wait = 0
for i, key in ipairs(KEYS) do
  local blocked = tonumber(redis.call('HGET', key, 'until') or '0')
  if blocked > now and blocked - now > wait then wait = blocked - now end
end
if wait > 0 then return wait end
for i, key in ipairs(KEYS) do
  local limit, window = tonumber(ARGV[i * 5 - 4]), tonumber(ARGV[i * 5 - 3])
  local pause, longest = tonumber(ARGV[i * 5 - 2]), tonumber(ARGV[i * 5 - 1])
  local n = redis.call('HINCRBY', key, 'n', 1)
  if n == 1 or ARGV[i * 5] == '1' then redis.call('EXPIRE', key, window) end
  if n >= limit then
    local seconds = redis.call('TTL', key)
    if pause > 0 then seconds = math.min(pause * 2 ^ (n - limit), longest) end
    redis.call('HSET', key, 'until', string.format('%.0f', now + seconds * 1000000))
  end
end
return 0
"""

# A success: the buckets of this person are emptied, shared ones get the one attempt back.
_RELEASE_SCRIPT = """
for i, key in ipairs(KEYS) do
  if ARGV[i] == '1' then
    redis.call('DEL', key)
  elseif redis.call('EXISTS', key) == 1 then
    redis.call('HINCRBY', key, 'n', -1)
    redis.call('HDEL', key, 'until')
  end
end
return 0
"""


@dataclass(frozen=True, slots=True)
class AttemptBucket:
    """`limit` attempts in `window` seconds; beyond them a pause that doubles up to `longest_pause`, or the whole
    window.

    `is_personal`: emptied by a success, because it holds no other user's attempts.
    """

    key: str
    limit: int
    window: int
    first_pause: int
    longest_pause: int
    is_personal: bool

    @property
    def is_sliding(self) -> bool:
        """Whether each attempt begins the window anew. What many people share starts afresh when its window is over."""
        return self.is_personal and self.first_pause > 0


class Attempt:
    """An attempt under way. `buckets`: those that it is reserved in."""

    def __init__(self, throttle: "Throttle") -> None:
        self._throttle = throttle
        self.buckets: list[AttemptBucket] = []

    async def add(self, buckets: Sequence[AttemptBucket]) -> None:
        """Reserves it in these too. Raises TooManyAttempts."""
        await self._throttle.reserve(buckets)
        self.buckets += buckets

    async def move(self, buckets: Sequence[AttemptBucket]) -> None:
        """Reserves it in these in place of those before, which get it back. Raises TooManyAttempts."""
        old, self.buckets = self.buckets, []
        await self._throttle.release(old)
        await self.add(buckets)


class Throttle:
    """One per process."""

    def __init__(self, redis: RedisGateway, keys: Keys, clock: Clock, *, network_limit: int) -> None:
        self._redis = redis
        self._key = keys.derive("throttle")
        self._clock = clock
        self._network_limit = network_limit
        self._reserve = Script(_RESERVE_SCRIPT)
        self._release = Script(_RELEASE_SCRIPT)
        self._local: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def login_buckets(self, email_canonical: str, ip: str | None, device_id: str | None) -> list[AttemptBucket]:
        """For a log-in with an address. `device_id` must have been verified."""
        if device_id is not None:
            return [self._bucket("device", device_id, 5, _DAY, 1, 900, is_personal=True)]
        return self.stranger_buckets(email_canonical, ip)

    def stranger_buckets(self, email_canonical: str, ip: str | None) -> list[AttemptBucket]:
        """For a log-in from a device that is not known; also what a log-in owes on top whose device cookie turns out to
        be of an earlier version of the account.
        """
        network = network_of(ip, ipv4_prefix=_IPV4_PREFIX)
        return [
            self._bucket("pair", f"{email_canonical}|{network}", 5, _DAY, 1, 900, is_personal=True),
            self._bucket("email", email_canonical, 20, 900, 0, 0, is_personal=False),
            *self.account_bucket(email_canonical),
            *self._shared_buckets("log-in", ip, self._network_limit),
        ]

    def _shared_buckets(self, kind: str, ip: str | None, limit: int) -> list[AttemptBucket]:
        """Those of a client's address and network. Beyond the limit they slow and do not close, because others are
        behind the same ones.
        """
        wide = limit * _ADDRESSES_OF_A_SITE
        return [
            self._bucket(f"{kind}-address", network_of(ip), limit, 3600, 60, 60, is_personal=False),
            self._bucket(f"{kind}-network", site_of(ip), wide, 3600, 10, 10, is_personal=False),
        ]

    def session_buckets(self, purpose: str, session_id: object) -> list[AttemptBucket]:
        """For a caller who proves something once more: the current password, the first code of a new seed."""
        return [self._bucket(purpose, str(session_id), 5, _DAY, 1, 900, is_personal=True)]

    def code_buckets(
        self, user_id: UserId, ip: str | None, device_id: str | None, *, is_totp: bool
    ) -> list[AttemptBucket]:
        """For a log-in that waits for its second factor. `device_id` must have been verified, and must have passed the
        factor that the account has now: other devices are strangers.
        """
        device = f"{user_id}|{device_id or network_of(ip, ipv4_prefix=_IPV4_PREFIX)}"
        if not is_totp:
            return [self._bucket("recovery", device, 20, 3600, 1, 10, is_personal=True)]
        pauses = self._bucket("totp", device, 5, _DAY, 1, 900, is_personal=True)
        strangers, known = self._month_buckets(user_id, is_personal=False)
        return [pauses, strangers if device_id is None else known]

    def month_buckets(self, user_id: UserId) -> list[AttemptBucket]:
        """What a new password opens again."""
        return self._month_buckets(user_id, is_personal=True)

    def _month_buckets(self, user_id: UserId, *, is_personal: bool) -> list[AttemptBucket]:
        """The codes of strangers, and of all known devices together; a success of one device gives no other any."""
        return [
            self._bucket(kind, str(user_id), _CODES_A_MONTH, 30 * _DAY, 0, 0, is_personal=is_personal)
            for kind in ("totp-all", "totp-known")
        ]

    def email_code_buckets(self, email_canonical: str, ip: str | None, *, is_known: bool) -> list[AttemptBucket]:
        """For a log-in by a code that was sent to an address. `is_known`: the device has shown a genuine cookie."""
        strangers, known = self._month_buckets_of_email_codes(email_canonical, is_personal=False)
        return [known] if is_known else [strangers, *self._shared_buckets("log-in", ip, self._network_limit)]

    def month_buckets_of_email_codes(self, email_canonical: str) -> list[AttemptBucket]:
        """What a new password opens again."""
        return self._month_buckets_of_email_codes(email_canonical, is_personal=True)

    def _month_buckets_of_email_codes(self, email_canonical: str, *, is_personal: bool) -> list[AttemptBucket]:
        return [
            self._bucket(kind, email_canonical, _CODES_A_MONTH, 30 * _DAY, 0, 0, is_personal=is_personal)
            for kind in ("email-code-all", "email-code-known")
        ]

    def registration_buckets(self, ip: str | None, limit: int) -> list[AttemptBucket]:
        """For a client that makes an account, or asks for an e-mail from a device that is not known."""
        return self._shared_buckets("register", ip, limit)

    def account_bucket(self, email_canonical: str) -> list[AttemptBucket]:
        """What a password reset opens again."""
        return [self._bucket("account", email_canonical, 100, 30 * _DAY, 0, 0, is_personal=True)]

    async def reserve(self, buckets: Sequence[AttemptBucket]) -> None:
        """Takes one attempt from each bucket, or none.

        Raises:
            TooManyAttempts: with the seconds until the next one.
        """
        args: list[str | int] = [
            value
            for bucket in buckets
            for value in (
                bucket.limit,
                bucket.window,
                bucket.first_pause,
                bucket.longest_pause,
                int(bucket.is_sliding),
            )
        ]
        try:
            wait = await self._redis.call(
                lambda client: self._reserve(client, [bucket.key for bucket in buckets], args)
            )
            seconds = ceil(int(wait) / 1_000_000)
        except RedisUnavailable:
            seconds = self._reserve_locally(buckets)
        if seconds:
            _attempts_total.labels("refused").inc()
            raise TooManyAttempts(retry_after=seconds)
        _attempts_total.labels("let_through").inc()

    async def may_ask_for_mail(self, purpose: str, email_canonical: str, source: str) -> bool:
        """Whether `source`, a known device, a user or a network, may ask once more for mail of this purpose to this
        address. Each has a share of its own, so that none can use up another's.
        """
        subject = f"{purpose}|{source}|{email_canonical}"
        return await self._has_room(
            self._bucket("mail", subject, _MAIL_REQUESTS_AN_HOUR, 3600, 0, 0, is_personal=False)
        )

    async def may_warn(self, user_id: UserId) -> bool:
        """Whether the owner of an account may be warned of guesses; once a day."""
        return await self._has_room(self._bucket("warning", str(user_id), 1, _DAY, 0, 0, is_personal=False))

    async def _has_room(self, bucket: AttemptBucket) -> bool:
        try:
            await self.reserve([bucket])
        except TooManyAttempts:
            return False
        return True

    @asynccontextmanager
    async def attempt(self, buckets: Sequence[AttemptBucket]) -> AsyncIterator["Attempt"]:
        """Reserves an attempt for what is inside; one that was not judged is given back, from all buckets that it has
        then.

        Raises:
            TooManyAttempts: with the seconds until the next one.
        """
        attempt = Attempt(self)
        await attempt.add(buckets)
        try:
            yield attempt
        except (Unavailable, ClientGone):
            await self._give_back(attempt.buckets, emptied=())
            raise

    async def release(self, buckets: Sequence[AttemptBucket]) -> None:
        """After a success."""
        await self._give_back(buckets, emptied=[bucket for bucket in buckets if bucket.is_personal])

    async def _give_back(self, buckets: Sequence[AttemptBucket], *, emptied: Sequence[AttemptBucket]) -> None:
        args = ["1" if bucket in emptied else "0" for bucket in buckets]
        for bucket in buckets:
            self._give_back_locally(bucket, is_emptied=bucket in emptied)
        try:
            await self._redis.call(lambda client: self._release(client, [bucket.key for bucket in buckets], args))
        except RedisUnavailable:
            return

    def _reserve_locally(self, buckets: Sequence[AttemptBucket]) -> int:
        now = self._clock.timestamp()
        states = [self._local.get(bucket.key, (0, 0.0, 0.0)) for bucket in buckets]
        wait = max(until - now for _, until, _ in states)
        if wait > 0:
            return ceil(wait)
        for bucket, (n, _, ends) in zip(buckets, states, strict=True):
            count = 1 if ends <= now else n + 1
            end = now + bucket.window if count == 1 or bucket.is_sliding else ends
            until = 0.0
            if count >= bucket.limit:
                doublings = min(count - bucket.limit, _MAX_DOUBLINGS)
                pause = min(bucket.first_pause * 2**doublings, bucket.longest_pause)
                until = now + pause if bucket.first_pause else end
            self._local[bucket.key] = (count, until, end)
            self._local.move_to_end(bucket.key)
        while len(self._local) > _MAX_LOCAL_BUCKETS:
            self._local.popitem(last=False)
        return 0

    def _give_back_locally(self, bucket: AttemptBucket, *, is_emptied: bool) -> None:
        state = self._local.pop(bucket.key, None)
        if state is not None and not is_emptied:
            self._local[bucket.key] = (state[0] - 1, 0.0, state[2])

    def _bucket(
        self,
        kind: str,
        subject: str,
        limit: int,
        window: int,
        first_pause: int,
        longest_pause: int,
        *,
        is_personal: bool,
    ) -> AttemptBucket:
        name = urlsafe_b64encode(hmac.digest(self._key, f"{kind}|{subject}".encode(), sha256)[:18]).decode()
        return AttemptBucket(f"identity:attempts:{kind}:{name}", limit, window, first_pause, longest_pause, is_personal)
