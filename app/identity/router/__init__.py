"""The identity routes, by what they are about."""

from app.identity.router import (
    accounts,
    admin,
    api_keys,
    email_codes,
    oauth,
    passkeys,
    second_factor,
    service_accounts,
    sessions,
)

ROUTERS = (
    sessions.router,
    email_codes.router,
    passkeys.router,
    oauth.router,
    oauth.well_known,
    accounts.router,
    accounts.own_account,
    api_keys.router,
    second_factor.router,
    admin.router,
    admin.all_trails,
    service_accounts.router,
)

# Where errors have OAuth's form.
OAUTH_PATHS = frozenset(oauth.PATHS)
