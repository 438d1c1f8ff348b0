"""What can go wrong with log-in and tokens."""

from app.kernel.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)


class EmailTaken(Conflict):
    code = "email_taken"
    title = "There is an account with this e-mail address"


class RegistrationClosed(Forbidden):
    code = "registration_closed"
    title = "New accounts cannot be made here"


class InvalidEmail(Unprocessable):
    code = "invalid_email"
    title = "Not an e-mail address"


class WeakPassword(Unprocessable):
    code = "weak_password"
    title = "The password is too easy to guess"


class InvalidCredentials(Unauthenticated):
    code = "invalid_credentials"
    title = "The e-mail address or the password is wrong"


class EmailNotVerified(Forbidden):
    code = "email_not_verified"
    title = "The e-mail address has not been verified yet"


class AccountBanned(Forbidden):
    code = "account_banned"
    title = "The account is banned"


class InvalidRefreshToken(Unauthenticated):
    code = "invalid_refresh_token"
    title = "The refresh token is not valid"


class InvalidCurrentPassword(Forbidden):
    code = "invalid_current_password"
    title = "The current password is wrong"


class InvalidOneTimeToken(BadRequest):
    code = "invalid_token"
    title = "The token is not valid or has been used"


class SessionNotFound(NotFound):
    code = "session_not_found"
    title = "There is no such session"


class HashingOverloaded(Unavailable):
    code = "login_overloaded"
    title = "Too many log-ins are under way"


class TooManyAttempts(TooManyRequests):
    code = "too_many_attempts"
    title = "Too many attempts"


class InvalidMfaToken(Unauthenticated):
    code = "invalid_mfa_token"
    title = "The log-in that this belongs to is over"


class InvalidCode(Unauthenticated):
    code = "invalid_code"
    title = "The code is wrong or has been used"


class SecondFactorActive(Conflict):
    code = "second_factor_active"
    title = "The account has a second factor already"


class SecondFactorMissing(Conflict):
    code = "second_factor_missing"
    title = "The account has no such second factor"


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"
    title = "There is no such API key"


class TooManyApiKeys(Conflict):
    code = "too_many_api_keys"
    title = "The account has as many API keys as it may have"


class AccountNotFound(NotFound):
    code = "account_not_found"
    title = "There is no such account"


class LastAdmin(Conflict):
    code = "last_admin"
    title = "The last administrator must stay one"


class OwnAccount(Conflict):
    code = "own_account"
    title = "Administrators cannot do this to themselves"
