"""The end of the weekly report by a link in its mail, without a log-in (RFC 8058).

A link is signed, not stored. It names an account and when it expires, and its signature covers the account's address as
well: a reader of an address's mail ends what goes to that address, and nothing after the account has another one.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID

from app.identity.api import Actor, Device, get_mail_account, record_security_event
from app.jobs.errors import UnsubscribeLinkExpired, UnsubscribeLinkInvalid
from app.kernel.clock import Clock
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.sealing import Keys
from app.users.api import end_weekly_report

PATH = "/unsubscribe"
_PURPOSE = "unsubscribe-weekly-report"
# Mails lie about; the law of some countries asks for 30 days.
_LIFETIME = timedelta(days=90)
_ID_BYTES = 16
_TIME_BYTES = 5
_TAG_BYTES = 32


def make_unsubscribe_link(keys: Keys, public_url: str, user_id: UserId, email_canonical: str, now: datetime) -> str:
    """The URL for the account that has this address now."""
    body = user_id.bytes + int((now + _LIFETIME).timestamp()).to_bytes(_TIME_BYTES)
    token = urlsafe_b64encode(body + _tag(keys, body, email_canonical)).rstrip(b"=").decode()
    return f"{public_url}{PATH}?token={token}"


@retries_conflicts
async def unsubscribe(db: Database, clock: Clock, keys: Keys, token: str, device: Device) -> None:
    """Turns the weekly report of the link's account off, and tells its audit trail if it was on.

    Raises:
        UnsubscribeLinkInvalid: it is none of ours, or the account is gone or has another address.
        UnsubscribeLinkExpired
    """
    body, tag = _parts(token)
    user_id = UserId(UUID(bytes=body[:_ID_BYTES]))
    async with db.transaction("jobs.unsubscribe") as tx:
        account = await get_mail_account(tx, user_id)
        if account is None or not hmac.compare_digest(tag, _tag(keys, body, account.email_canonical)):
            raise UnsubscribeLinkInvalid
        if clock.now().timestamp() >= int.from_bytes(body[_ID_BYTES:]):
            raise UnsubscribeLinkExpired
        if await end_weekly_report(tx, user_id):
            await record_security_event(tx, clock, Actor(user_id, None, device), "weekly_report_unsubscribed")


def _tag(keys: Keys, body: bytes, email_canonical: str) -> bytes:
    return hmac.digest(keys.derive(_PURPOSE), body + email_canonical.encode(), sha256)


def _parts(token: str) -> tuple[bytes, bytes]:
    """What is signed, and the signature."""
    try:
        raw = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, Base64Error) as error:
        raise UnsubscribeLinkInvalid from error
    if len(raw) != _ID_BYTES + _TIME_BYTES + _TAG_BYTES:
        raise UnsubscribeLinkInvalid
    return raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
