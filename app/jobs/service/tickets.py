"""Tickets for streams: an address that a browser's EventSource can open, which sends no `Authorization` header.

A ticket is the credential of its caller, sealed for one job. It opens a stream once, within a minute; the stream ends
when the credential does.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from app.jobs.errors import InvalidTicket
from app.jobs.queries.tickets import spend_ticket
from app.kernel.clock import Clock
from app.kernel.database import Database
from app.kernel.ids import new_id
from app.kernel.sealing import Keys, SealBroken

_PURPOSE = "stream-ticket"
_TTL = timedelta(minutes=1)


class _Ticket(msgspec.Struct, frozen=True, array_like=True):
    id: UUID
    expires_at: datetime
    credential: bytes


def make_ticket(keys: Keys, clock: Clock, job_id: UUID, credential: bytes) -> str:
    """A ticket for the stream of a job that the credential may read."""
    ticket = _Ticket(new_id(), clock.now() + _TTL, credential)
    sealed = keys.encrypt(_PURPOSE, msgspec.msgpack.encode(ticket), context=job_id.bytes)
    return urlsafe_b64encode(sealed).rstrip(b"=").decode()


async def redeem_ticket(db: Database, keys: Keys, clock: Clock, job_id: UUID, text: str) -> bytes:
    """The credential of a ticket, which is spent then.

    Raises:
        InvalidTicket: it is that of another job, expired, spent or none of ours.
    """
    try:
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        plain = keys.decrypt(_PURPOSE, sealed, context=job_id.bytes)
    except (Base64Error, ValueError, SealBroken) as error:
        raise InvalidTicket from error
    ticket = msgspec.msgpack.decode(plain, type=_Ticket)
    if ticket.expires_at <= clock.now():
        raise InvalidTicket
    async with db.statement("jobs.spend_ticket") as tx:
        if not await spend_ticket(tx, ticket.id, ticket.expires_at + _TTL):
            raise InvalidTicket
    return ticket.credential
