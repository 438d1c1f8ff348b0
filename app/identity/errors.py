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
    """An account with this e-mail address exists. Log in, or reset its password."""

    code = "email_taken"
    title = "There is an account with this e-mail address"


class RegistrationClosed(Forbidden):
    """This installation takes no registrations. Ask its operator for an account."""

    code = "registration_closed"
    title = "New accounts cannot be made here"


class InvalidEmail(Unprocessable):
    """The text is not an address to which mail can be sent."""

    code = "invalid_email"
    title = "Not an e-mail address"


class WeakPassword(Unprocessable):
    """The password is too short, too common, or resembles the address or name. `errors` has every reason."""

    code = "weak_password"
    title = "The password is too easy to guess"


class InvalidCredentials(Unauthenticated):
    """No account has this address and password. The answer is the same for known and unknown addresses."""

    code = "invalid_credentials"
    title = "The e-mail address or the password is wrong"


class ScopeExceeded(Forbidden):
    """Ask for scopes that the session has; a new log-in can have all that the account may use."""

    code = "scope_exceeded"
    title = "The scope is more than was granted"


class EmailNotVerified(Forbidden):
    """Open the link in the e-mail that was sent to the address, or have it sent again, and then log in."""

    code = "email_not_verified"
    title = "The e-mail address has not been verified yet"


class AccountBanned(Forbidden):
    """An administrator has banned the account. It cannot log in until the ban is lifted."""

    code = "account_banned"
    title = "The account is banned"


class InvalidRefreshToken(Unauthenticated):
    """The refresh token is unknown, expired, revoked or spent. Log in again."""

    code = "invalid_refresh_token"
    title = "The refresh token is not valid"


class InvalidCurrentPassword(Forbidden):
    """The password in the request is not that of the account."""

    code = "invalid_current_password"
    title = "The current password is wrong"


class InvalidOneTimeToken(BadRequest):
    """The token of an e-mail link is unknown, expired or used. Have another link sent."""

    code = "invalid_token"
    title = "The token is not valid or has been used"


class SessionNotFound(NotFound):
    """The caller has no session with this id, or it has ended."""

    code = "session_not_found"
    title = "There is no such session"


class HashingOverloaded(Unavailable):
    """More passwords are being checked than the server takes at a time. Try again after `Retry-After`."""

    code = "login_overloaded"
    title = "Too many log-ins are under way"


class TooManyAttempts(TooManyRequests):
    """Too many log-ins or codes were wrong. Wait for the seconds of `Retry-After`."""

    code = "too_many_attempts"
    title = "Too many attempts"


class InvalidMfaToken(Unauthenticated):
    """The log-in that needs a second factor has expired or is finished. Begin with the password again."""

    code = "invalid_mfa_token"
    title = "The log-in that this belongs to is over"


class InvalidCode(Unauthenticated):
    """The code of the authenticator or the recovery code is wrong, or has been used before."""

    code = "invalid_code"
    title = "The code is wrong or has been used"


class SecondFactorActive(Conflict):
    """Turn the present second factor off before another one is enrolled."""

    code = "second_factor_active"
    title = "The account has a second factor already"


class SecondFactorMissing(Conflict):
    """The account has no second factor in the state that this call needs. Enrol one first."""

    code = "second_factor_missing"
    title = "The account has no such second factor"


class ApiKeyNotFound(NotFound):
    """The caller has no API key with this id, or it has been deleted."""

    code = "api_key_not_found"
    title = "There is no such API key"


class TooManyApiKeys(Conflict):
    """Delete an API key before another one is created."""

    code = "too_many_api_keys"
    title = "The account has as many API keys as it may have"


class AccountNotFound(NotFound):
    """No account has this id."""

    code = "account_not_found"
    title = "There is no such account"


class LastAdmin(Conflict):
    """Give another account the role `admin` first."""

    code = "last_admin"
    title = "The last administrator must stay one"


class OwnAccount(Conflict):
    """Another administrator has to do this."""

    code = "own_account"
    title = "Administrators cannot do this to themselves"
