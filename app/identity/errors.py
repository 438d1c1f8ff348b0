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
    title = "E-mail address already in use"


class RegistrationClosed(Forbidden):
    """This installation takes no registrations. Ask its operator for an account."""

    code = "registration_closed"
    title = "Registration is closed"


class InvalidEmail(Unprocessable):
    """The text is not an address to which mail can be sent."""

    code = "invalid_email"
    title = "Invalid e-mail address"


class WeakPassword(Unprocessable):
    """The password is too short, too common, or resembles the address or name. `errors` has every reason."""

    code = "weak_password"
    title = "Password too weak"


class InvalidCredentials(Unauthenticated):
    """No account has this address and password. The answer is the same for known and unknown addresses."""

    code = "invalid_credentials"
    title = "Wrong e-mail address or password"


class ScopeExceeded(Forbidden):
    """Ask for scopes that the session has; a new log-in can have all that the account may use."""

    code = "scope_exceeded"
    title = "Scope exceeds the grant"


class EmailNotVerified(Forbidden):
    """Open the link in the e-mail that was sent to the address, or have it sent again, and then log in."""

    code = "email_not_verified"
    title = "E-mail address not verified"


class AccountBanned(Forbidden):
    """An administrator has banned the account. It cannot log in until the ban is lifted."""

    code = "account_banned"
    title = "Account banned"


class InvalidRefreshToken(Unauthenticated):
    """The refresh token is unknown, expired, revoked or spent. Log in again."""

    code = "invalid_refresh_token"
    title = "Invalid refresh token"


class InvalidCurrentPassword(Forbidden):
    """The password in the request is not that of the account."""

    code = "invalid_current_password"
    title = "Wrong current password"


class InvalidOneTimeToken(BadRequest):
    """The token of an e-mail link is unknown, expired or used. Have another link sent."""

    code = "invalid_token"
    title = "Invalid or used token"


class SessionNotFound(NotFound):
    """The caller has no session with this id, or it has ended."""

    code = "session_not_found"
    title = "Session not found"


class HashingOverloaded(Unavailable):
    """More passwords are being checked than the server takes at a time. Try again after `Retry-After`."""

    code = "login_overloaded"
    title = "Too many concurrent log-ins"


class TooManyAttempts(TooManyRequests):
    """Too many log-ins or codes were wrong. Wait for the seconds of `Retry-After`."""

    code = "too_many_attempts"
    title = "Too many attempts"


class InvalidMfaToken(Unauthenticated):
    """The log-in that needs a second factor has expired or is finished. Begin with the password again."""

    code = "invalid_mfa_token"
    title = "This sign-in attempt has expired"


class InvalidCode(Unauthenticated):
    """The code of the authenticator, of an e-mail, or for recovery is wrong or too old, or has been used before."""

    code = "invalid_code"
    title = "Wrong or used code"


class SecondFactorActive(Conflict):
    """Turn the present second factor off before another one is enrolled."""

    code = "second_factor_active"
    title = "Second factor already active"


class SecondFactorMissing(Conflict):
    """The account has no second factor in the state that this call needs. Enrol one first."""

    code = "second_factor_missing"
    title = "Second factor not found"


class ReauthenticationRequired(Forbidden):
    """The call needs a log-in within the last 15 minutes. Log in again, and repeat it with the new session."""

    code = "reauthentication_required"
    title = "Recent log-in required"


class PasskeyRejected(BadRequest):
    """The browser's answer is malformed, or was made for another site, user or session. Begin with new options."""

    code = "passkey_rejected"
    title = "Passkey not accepted"


class InvalidPasskey(Unauthenticated):
    """The passkey is not known here, or has not signed this challenge in time. Begin with new options."""

    code = "invalid_passkey"
    title = "Unknown or wrong passkey"


class PasskeyTaken(Conflict):
    """The passkey has been added already."""

    code = "passkey_taken"
    title = "Passkey already in use"


class TooManyPasskeys(Conflict):
    """Remove a passkey before another one is added."""

    code = "too_many_passkeys"
    title = "Passkey limit reached"


class PasskeyNotFound(NotFound):
    """The caller has no passkey with this id, or it has been removed."""

    code = "passkey_not_found"
    title = "Passkey not found"


class ApiKeyNotFound(NotFound):
    """The caller has no API key with this id, or it has been deleted."""

    code = "api_key_not_found"
    title = "API key not found"


class TooManyApiKeys(Conflict):
    """Delete an API key before another one is created."""

    code = "too_many_api_keys"
    title = "API key limit reached"


class InvalidClient(Unauthenticated):
    """No service account has this id and secret. The answer is the same for known and unknown ids."""

    # Answered in OAuth's form.
    in_api = False
    code = "invalid_client"
    title = "Unknown client or wrong secret"


class ServiceAccountNotFound(NotFound):
    """No service account has this id, or it has been deleted."""

    code = "service_account_not_found"
    title = "Service account not found"


class AccountNotFound(NotFound):
    """No account has this id."""

    code = "account_not_found"
    title = "Account not found"


class ImpersonationRefused(Forbidden):
    """The account is that of an administrator or of a program, for which no administrator can act."""

    code = "impersonation_refused"
    title = "Account cannot be impersonated"


class LastAdmin(Conflict):
    """Give another account the role `admin` first."""

    code = "last_admin"
    title = "Last administrator"


class ServiceAccountRole(Conflict):
    """A service account has the scopes that it was made with, and no role."""

    code = "service_account_role"
    title = "Service accounts have no role"


class OwnAccount(Conflict):
    """Another administrator has to do this."""

    code = "own_account"
    title = "Not allowed on your own account"
