"""The device cookie: proof of an earlier log-in of one account from this device. It opens nothing; it only keeps the
failures of strangers from locking its owner out.

It is bound to the account, because an address may belong to another one later, and to the account's version, so that a
device of before a new password is a stranger again. It says which second factor it has passed, so that a device of
before that factor is a stranger to its codes.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from app.identity.records import Account
from app.kernel.ids import UserId
from app.kernel.sealing import Keys

COOKIE_NAME = "onehop_device"
COOKIE_SECONDS = 365 * 86_400
_ID_BYTES = 16
_NUMBER_BYTES = 8
_MAC_BYTES = 16
_BODY_BYTES = 2 * _ID_BYTES + 2 * _NUMBER_BYTES


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """What a genuine cookie says: the device's id, the account and its version that it was made at, and the epoch of
    the second factor that was passed, 0 for none.
    """

    id: str
    user_id: UserId
    version: int
    factor_epoch: int

    def is_of(self, account: Account) -> bool:
        """Whether it was made for this account as it is now."""
        return (self.user_id, self.version) == (account.user_id, account.version)


class Devices:
    """Makes and reads device cookies."""

    def __init__(self, keys: Keys) -> None:
        self._key = keys.derive("device")

    def issue(self, email_canonical: str, user_id: UserId, version: int, *, factor_epoch: int) -> str:
        """A cookie value for a device that has just proven to belong to the owner of the account at `version`, by a
        second factor of `factor_epoch` or, if that is 0, without one.
        """
        numbers = version.to_bytes(_NUMBER_BYTES) + factor_epoch.to_bytes(_NUMBER_BYTES)
        body = secrets.token_bytes(_ID_BYTES) + user_id.bytes + numbers
        return urlsafe_b64encode(body + self._mac(body, email_canonical)).rstrip(b"=").decode()

    def recognise(self, cookie: str | None, email_canonical: str) -> KnownDevice | None:
        """The device, if the cookie was issued for this address."""
        try:
            raw = urlsafe_b64decode((cookie or "") + "=" * (-len(cookie or "") % 4))
        except (Base64Error, ValueError):
            return None
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if len(body) != _BODY_BYTES or not hmac.compare_digest(mac, self._mac(body, email_canonical)):
            return None
        device_id, user_id, numbers = body[:_ID_BYTES], body[_ID_BYTES : 2 * _ID_BYTES], body[2 * _ID_BYTES :]
        version, factor_epoch = (int.from_bytes(part) for part in (numbers[:_NUMBER_BYTES], numbers[_NUMBER_BYTES:]))
        return KnownDevice(device_id.hex(), UserId(UUID(bytes=user_id)), version, factor_epoch)

    def _mac(self, body: bytes, email_canonical: str) -> bytes:
        return hmac.digest(self._key, body + email_canonical.encode(), sha256)[:_MAC_BYTES]
