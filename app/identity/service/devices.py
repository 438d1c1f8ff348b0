"""The device cookie: proof of an earlier log-in of one account from this device. It opens nothing; it only keeps a
stranger's failures from locking its owner out.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import sha256

from app.kernel.keys import Keys

COOKIE_NAME = "onehop_device"
COOKIE_SECONDS = 365 * 86_400
_ID_BYTES = 16
_MAC_BYTES = 16


class Devices:
    """Makes and reads device cookies."""

    def __init__(self, keys: Keys) -> None:
        self._key = keys.derive("device")

    def issue(self, email_canonical: str) -> str:
        """A cookie value for a device from which somebody has just logged in with this address."""
        device_id = secrets.token_bytes(_ID_BYTES)
        return urlsafe_b64encode(device_id + self._mac(device_id, email_canonical)).rstrip(b"=").decode()

    def recognise(self, cookie: str | None, email_canonical: str) -> str | None:
        """The device's id, if the cookie was issued for this address."""
        try:
            raw = urlsafe_b64decode((cookie or "") + "=" * (-len(cookie or "") % 4))
        except (Base64Error, ValueError):
            return None
        device_id, mac = raw[:_ID_BYTES], raw[_ID_BYTES:]
        return device_id.hex() if hmac.compare_digest(mac, self._mac(device_id, email_canonical)) else None

    def _mac(self, device_id: bytes, email_canonical: str) -> bytes:
        return hmac.digest(self._key, device_id + email_canonical.encode(), sha256)[:_MAC_BYTES]
