"""The identity routes, by what they are about."""

from app.identity.router import accounts, admin, api_keys, oauth, second_factor, sessions

ROUTERS = (
    sessions.router,
    oauth.router,
    oauth.well_known,
    accounts.router,
    accounts.own_account,
    api_keys.router,
    second_factor.router,
    admin.router,
)

# Requests that hash a password, so that there can only be so many of them at once.
LOG_INS = frozenset(
    {
        "/v1/auth/login",
        "/v1/auth/token",
        "/v1/auth/register",
        "/v1/auth/password/change",
        "/v1/auth/password/reset",
        "/v1/auth/email/change",
    }
)
