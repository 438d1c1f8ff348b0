"""Demo data for development: two people and 10,000 events. Running it again changes nothing."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from app.composition import close_resources, make_resources, open_database
from app.dev.welcome import LogIn
from app.identity.api import PasswordHashing, check_secret, issue_login_code, operator, provision_account
from app.kernel.auth import Role
from app.kernel.clock import Clock
from app.kernel.database import Tx
from app.kernel.ids import UserId
from app.settings import Settings
from app.users import api as users

_EVENTS = 10_000
_BATCH = 500
_DAYS = 60
_KINDS = ("page.viewed", "search.made", "document.opened", "document.shared", "comment.added", "session.started")


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """A demo account to log in with."""

    email: str
    password: str
    role: Role
    display_name: str


DEMO_ACCOUNTS = (
    DemoAccount("admin@example.com", "admin-of-onehop-42", "admin", "Ada Admin"),
    DemoAccount("demo@example.com", "demo-of-onehop-42", "user", "Dana Demo"),
)


async def seed(settings: Settings) -> list[LogIn]:
    """Makes what is missing; returns how one logs in.

    Raises:
        SettingsError: the database was used with another APP_SECRET_KEY.
    """
    resources = make_resources(settings, application_name="onehop-seed")
    hashing = PasswordHashing(settings.identity)
    await open_database(resources)
    try:
        await check_secret(resources.db, resources.keys)
        for account in DEMO_ACCOUNTS:
            await provision_account(
                resources.db,
                hashing,
                resources.clock,
                operator("demo data"),
                email=account.email,
                password=account.password,
                display_name=account.display_name,
                role=account.role,
                furnish=partial(_add_events, resources.clock) if account.role == "user" else None,
            )
        code = await issue_login_code(resources.db, resources.keys, resources.clock, DEMO_ACCOUNTS[0].email)
    finally:
        await hashing.close()
        await close_resources(resources)
    return [
        LogIn(account.email, account.password, account.role, code if account.role == "admin" else None)
        for account in DEMO_ACCOUNTS
    ]


async def _add_events(clock: Clock, tx: Tx, user_id: UserId) -> None:
    events = list(_invented_events(clock.now()))
    for start in range(0, len(events), _BATCH):
        await users.record_events(tx, clock, user_id, events[start : start + _BATCH])


def _invented_events(now: datetime) -> Iterator[users.NewEvent]:
    """The same for everybody and every time, but for the present day."""
    chance = random.Random(42)  # noqa: S311 - the same demo data each time, and no secret
    moments = sorted(chance.uniform(0, _DAYS * 86_400) for _ in range(_EVENTS))
    for seconds in reversed(moments):
        properties = f'{{"path": "/documents/{chance.randint(1, 400)}", "ms": {chance.randint(5, 900)}}}'
        yield users.NewEvent(chance.choice(_KINDS), now - timedelta(seconds=seconds), properties)
