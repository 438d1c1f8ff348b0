"""Which passwords are refused (NIST SP 800-63B): length and what attackers try first; no rules of composition."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from app.identity.errors import WeakPassword
from app.kernel.errors import FieldError
from app.kernel.validation.field_codes import FieldErrorCode

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128
# NFC makes one character of up to so many.
_MAX_DECOMPOSED = 4

# 100,000 passwords of leaks, as sorted prefixes of their SHA-256; scripts/common_passwords.py made it.
_COMMON = (Path(__file__).resolve().parents[1] / "common_passwords.bin").read_bytes()
_PREFIX_BYTES = 5
_MIN_WORD_LENGTH = 4


class _Prefixes:
    """The file as a sequence for bisection."""

    def __len__(self) -> int:
        return len(_COMMON) // _PREFIX_BYTES

    def __getitem__(self, index: int) -> bytes:
        return _COMMON[index * _PREFIX_BYTES : (index + 1) * _PREFIX_BYTES]


_PREFIXES = _Prefixes()


def normalise_password(password: str) -> str:
    """The form that is hashed: NFC, so that one password typed on two keyboards is one password.

    Of one that is too long in any form the rest is left out: to order n marks takes a time that grows with n².
    """
    return unicodedata.normalize("NFC", password[: _MAX_DECOMPOSED * (MAX_PASSWORD_LENGTH + 1)])


def check_password(password: str, *, about: Iterable[str | None] = (), pointer: str = "#/password") -> None:
    """Refuses what is easy to guess. `about` are the address and name of its owner.

    Raises:
        WeakPassword: with every reason.
    """
    reasons = list(_reasons(password, [value for value in about if value]))
    if reasons:
        raise WeakPassword(errors=[FieldError(pointer, detail, code) for code, detail in reasons])


def _reasons(password: str, about: list[str]) -> Iterable[tuple[FieldErrorCode, str]]:
    if len(password) < MIN_PASSWORD_LENGTH:
        yield "too_short", f"It needs at least {MIN_PASSWORD_LENGTH} characters."
    if len(password) > MAX_PASSWORD_LENGTH:
        yield "too_long", f"It may have at most {MAX_PASSWORD_LENGTH} characters."
        return
    folded = password.casefold()
    if is_common(folded):
        yield "too_common", "It is among the passwords that are tried first."
    if _is_similar(folded, about):
        yield "too_similar", "It is too much like the e-mail address or the name."


def is_common(folded: str) -> bool:
    """Whether a password, case folded, is among the 100,000 of the list."""
    prefix = sha256(folded.encode()).digest()[:_PREFIX_BYTES]
    index = bisect_left(_PREFIXES, prefix)
    return index < len(_PREFIXES) and _PREFIXES[index] == prefix


def _is_similar(folded: str, about: list[str]) -> bool:
    """Whether little is left of a password without the words of its owner."""
    words = {word for value in about for word in re.split(r"[\W_]+", value.casefold()) if len(word) >= _MIN_WORD_LENGTH}
    words |= {value.casefold() for value in about}
    if any(folded in value.casefold() for value in about):
        return True
    rest = folded
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "").replace(word[::-1], "")
    return len(rest) < len(folded) and len(rest) < MIN_PASSWORD_LENGTH // 2
