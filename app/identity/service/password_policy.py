"""Which passwords are refused (NIST SP 800-63B: length and guessability, no rules of composition)."""

import unicodedata

from app.identity.errors import WeakPassword
from app.kernel.errors import FieldError

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128


def normalise_password(password: str) -> str:
    """The form that is hashed: NFC, so that one password typed on two keyboards is one password."""
    return unicodedata.normalize("NFC", password)


def check_password(password: str, *, pointer: str = "#/password") -> None:
    """Refuses a password that is too short or too long.

    Raises:
        WeakPassword: with every reason.
    """
    errors = []
    if len(password) < MIN_PASSWORD_LENGTH:
        errors.append(FieldError(pointer, f"It needs at least {MIN_PASSWORD_LENGTH} characters.", "too_short"))
    if len(password) > MAX_PASSWORD_LENGTH:
        errors.append(FieldError(pointer, f"It may have at most {MAX_PASSWORD_LENGTH} characters.", "too_long"))
    if errors:
        raise WeakPassword(errors=errors)
