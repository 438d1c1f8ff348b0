"""What a process holds for this module: keys, hashing threads, the revocation feed, the authenticator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from app.identity.queries.signing_keys import insert_first_signing_key, list_signing_keys
from app.identity.service.authentication import TRUSTED_SECONDS, TokenAuthenticator
from app.identity.service.cleanup import clean_up, seconds_until_cleanup
from app.identity.service.devices import Devices
from app.identity.service.key_rotation import SEALED_BY_ANOTHER, check_secret
from app.identity.service.login_throttle import Throttle
from app.identity.service.password_hashing import PasswordHashing
from app.identity.service.redis_clock import RedisClock
from app.identity.service.revocation import RevocationFeed
from app.identity.service.session_ends import SessionEndPublisher
from app.identity.service.token_issuer import TokenIssuer
from app.identity.service.tokens import COOKIE_PREFIX, KeyRing, RefreshTokens, new_signing_key
from app.identity.settings import IdentitySettings
from app.kernel.background import Background, is_set_within
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx
from app.kernel.database.failures import outside_cause
from app.kernel.database.incarnation import Incarnation
from app.kernel.errors import Unavailable
from app.kernel.headers.session_cookie import SessionCookie
from app.kernel.ids import UserId
from app.kernel.observability.exits import end_misconfigured
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import Queue
from app.kernel.resources import Resources
from app.kernel.sealing import Keys, SealBroken
from app.kernel.settings import SettingsError
from app.kernel.webhook_subscribers import WebhookSubscribers

# Revocations outlive everything they refuse, clocks that differ included.
_REVOCATION_MARGIN = 60
# That of an administrator who acts for a user.
LONGEST_TOKEN_SECONDS = 1800
_RELOAD_SECONDS = 60.0
_RETRY_SECONDS = 0.5
_PRODUCTION_QUOTA = 100
# Wide enough for a load test from one machine.
_DEVELOPMENT_QUOTA = 100_000

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IdentityServices:
    """Open for as long as the process runs."""

    settings: IdentitySettings
    product: str
    clock: Clock
    queue: Queue
    webhook_subscribers: WebhookSubscribers
    hashing: PasswordHashing
    key_ring: KeyRing
    refresh_tokens: RefreshTokens
    # What the session cookie says, and how it travels.
    cookies: RefreshTokens
    session_cookie: SessionCookie
    redis_clock: RedisClock
    issuer: TokenIssuer
    feed: RevocationFeed
    ends: SessionEndPublisher
    authenticator: TokenAuthenticator
    throttle: Throttle
    devices: Devices
    keys: Keys
    registrations_per_network: int
    # Turns off what another module reports of an account to the outside; called when its credentials end.
    end_channels: Callable[[Tx, UserId], Awaitable[None]]
    # Ends what other modules do for an account that is banned or closed, with an error code; and lets it go on.
    suspend_work: Callable[[Tx, Queue, UserId, str], Awaitable[None]]
    resume_work: Callable[[Tx, UserId], Awaitable[None]]

    def revocations_end(self) -> datetime:
        """When nothing that a process may remember of a token or key of now is trusted any more."""
        seconds = max(self.issuer.lifetime, TRUSTED_SECONDS, LONGEST_TOKEN_SECONDS) + _REVOCATION_MARGIN
        return self.feed.database_now() + timedelta(seconds=seconds)


def make_identity(
    settings: IdentitySettings,
    resources: Resources,
    *,
    product: str,
    base_url: Callable[[], str],
    is_production: bool,
    end_channels: Callable[[Tx, UserId], Awaitable[None]],
    suspend_work: Callable[[Tx, Queue, UserId, str], Awaitable[None]],
    resume_work: Callable[[Tx, UserId], Awaitable[None]],
) -> IdentityServices:
    """The module's parts, wired; subscribes to the bus, which must not have been started yet.

    `product` is its name for people, which no token holds; `base_url` tells where clients reach the server.
    """
    db, bus, clock, keys = resources.db, resources.bus, resources.clock, resources.keys
    quota = _PRODUCTION_QUOTA if is_production else _DEVELOPMENT_QUOTA
    key_ring = KeyRing(keys, resources.incarnation)
    refresh_tokens = RefreshTokens(keys, resources.incarnation)
    cookies = RefreshTokens(keys, resources.incarnation, prefix=COOKIE_PREFIX, purpose="session-cookie")
    feed = RevocationFeed(db, bus, clock, poll_seconds=settings.revocation_poll)
    return IdentityServices(
        settings=settings,
        product=product,
        clock=clock,
        queue=resources.queue,
        webhook_subscribers=resources.webhook_subscribers,
        hashing=PasswordHashing(settings),
        key_ring=key_ring,
        refresh_tokens=refresh_tokens,
        cookies=cookies,
        session_cookie=SessionCookie(base_url, resources.http),
        redis_clock=RedisClock(resources.redis),
        issuer=TokenIssuer(key_ring, refresh_tokens, base_url=base_url, lifetime=settings.access_token_ttl),
        feed=feed,
        ends=SessionEndPublisher(db, resources.webhook_subscribers),
        authenticator=TokenAuthenticator(
            key_ring,
            feed,
            clock,
            db,
            cookies=cookies,
            issuer=base_url,
            cache_size=settings.token_cache_size,
            session_idle_seconds=settings.refresh_idle_ttl,
        ),
        throttle=Throttle(resources.limits_redis, keys, clock, network_limit=settings.network_failures or quota),
        devices=Devices(keys),
        keys=keys,
        registrations_per_network=settings.network_registrations or quota,
        end_channels=end_channels,
        suspend_work=suspend_work,
        resume_work=resume_work,
    )


@asynccontextmanager
async def run_identity(
    identity: IdentityServices, db: Database, keys: Keys, incarnation: Incarnation
) -> AsyncIterator[None]:
    """Loads keys and revocations and keeps them fresh. While Postgres is not there yet, every token is refused."""
    loaded = asyncio.Event()
    background = Background()
    is_stale = asyncio.Event()
    incarnation.on_change(is_stale.set)
    incarnation.on_change(identity.authenticator.forget_all)
    background.spawn(_load_keys_for_ever(identity.key_ring, db, keys, loaded, is_stale))
    days = identity.settings.audit_days
    background.repeat(
        partial(clean_up, db, identity.queue, identity.clock, incarnation, audit_days=days),
        name="identity.cleanup",
        every=seconds_until_cleanup,
        rests_first=True,
    )
    identity.ends.start(background)
    identity.feed.start()
    try:
        async with asyncio.timeout(2):
            await loaded.wait()
            await identity.feed.refresh()
    except (TimeoutError, Unavailable):
        _logger.warning("identity.started_without_database")
    try:
        yield
    finally:
        await background.close()
        await identity.feed.close()
        # A hash under way is waited for.
        await identity.hashing.close()


async def load_signing_keys(key_ring: KeyRing, db: Database, keys: Keys) -> None:
    """Reads the signing keys; makes the first one in an empty installation."""
    async with db.read("identity.signing_keys") as conn:
        rows = await list_signing_keys(conn)
    if not any(row.state == "active" for row in rows):
        async with db.statement("identity.first_signing_key") as tx:
            await insert_first_signing_key(tx, new_signing_key(keys, "active"))
        async with db.statement("identity.first_signing_key") as tx:
            await insert_first_signing_key(tx, new_signing_key(keys, "next"))
        async with db.read("identity.signing_keys") as conn:
            rows = await list_signing_keys(conn)
    key_ring.load(rows)


async def _load_keys_for_ever(
    key_ring: KeyRing, db: Database, keys: Keys, loaded: asyncio.Event, is_stale: asyncio.Event
) -> None:
    """`is_stale`: those of now may not be those of the database any more."""
    failure: str | None = None
    while True:
        is_stale.clear()
        try:
            await load_signing_keys(key_ring, db, keys)
            loaded.set()
            failure = None
        except Unavailable:
            _logger.debug("identity.signing_keys_postponed")
        except SealBroken:
            if not loaded.is_set():
                end_misconfigured(SettingsError([SEALED_BY_ANOTHER]))
            # Those of before are still good. Ended now, this process would be missed before its successor is there.
            _logger.error("identity.signing_keys_unreadable", reason=SEALED_BY_ANOTHER)  # noqa: TRY400 - the event says all; a traceback adds nothing
        except Exception as error:
            # Twice a second, so each cause is told once.
            before, failure = failure, outside_cause(error) or repr(error)
            if failure != before:
                _logger.exception("identity.signing_keys_not_loaded", reason=failure)
        await is_set_within(is_stale, _RELOAD_SECONDS if loaded.is_set() else _RETRY_SECONDS)


async def confirm_secret(db: Database, keys: Keys) -> None:
    """Returns once the database has told that this installation's secret is the right one; else the process ends."""
    while True:
        try:
            await check_secret(db, keys)
            return
        except SettingsError as error:
            end_misconfigured(error)
        except Unavailable:
            await asyncio.sleep(_RETRY_SECONDS)
