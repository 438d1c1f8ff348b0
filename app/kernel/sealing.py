"""Keys derived from the one secret of the installation, and what is sealed with them.

Each purpose has a key of its own by HKDF (RFC 5869), so that what one of them signs or opens means nothing to another.
"""

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12
_KEY_BYTES = 32


class SealBroken(Exception):
    """The bytes were not sealed with this key for this purpose, or were changed."""


class Keys:
    """Derives keys from `secret`."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self.derive = lru_cache(maxsize=64)(self._derive)

    @property
    def key_id(self) -> str:
        """Names the secret without telling anything of it; stored beside what is sealed."""
        return self.derive("key-id")[:4].hex()

    def encrypt(self, purpose: str, plain: bytes, *, context: bytes = b"") -> bytes:
        """AES-256-GCM of `plain`; opened only with the same purpose and context, for example the id of its row."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.derive(purpose)).encrypt(nonce, plain, context)

    def decrypt(self, purpose: str, sealed: bytes, *, context: bytes = b"") -> bytes:
        """What `seal` was given.

        Raises:
            SealBroken: another secret, purpose or context, or changed bytes.
        """
        try:
            return AESGCM(self.derive(purpose)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            # ValueError: too short to be sealed bytes at all.
            raise SealBroken from error

    def _derive(self, purpose: str) -> bytes:
        return HKDF(SHA256(), _KEY_BYTES, salt=None, info=f"onehop:{purpose}".encode()).derive(self._secret)
