"""Accounts and log-ins."""

from benchmarks.cases.making import HASH, WRONG_PASSWORD, Case, by_form, by_stranger, many, one
from benchmarks.cases.scene import PASSWORD, raw
from benchmarks.load import request

_text = "a" * 400
_credential = {
    "id": "a" * 43,
    "rawId": "a" * 43,
    "type": "public-key",
    "response": {"clientDataJSON": _text, "attestationObject": _text},
}
_assertion = {
    "id": "a" * 43,
    "rawId": "a" * 43,
    "type": "public-key",
    "response": {"clientDataJSON": _text, "authenticatorData": _text, "signature": _text},
}

CASES: dict[str, Case] = {
    "POST /v1/auth/login": by_stranger(
        "POST", "/v1/auth/login", {"email": "unknown{n}@example.com", "password": "x" * 100}, HASH, answers={401}
    ),
    "POST /v1/auth/mfa/verify": by_stranger(
        "POST", "/v1/auth/mfa/verify", {"mfa_token": "a" * 400, "code": "123456"}, answers={401}
    ),
    "POST /v1/auth/refresh": by_stranger(
        "POST", "/v1/auth/refresh", {"refresh_token": "rt_{n}" + "a" * 40}, answers={401}
    ),
    "POST /v1/auth/logout": Case(
        lambda s: [raw("POST", "/v1/auth/logout", {"refresh_token": "rt_" + "a" * 40}, token=s.leaver.access)],
        answers={204},
    ),
    "POST /v1/auth/logout-all": one("POST", "/v1/auth/logout-all", {"keep_current": True}),
    "GET /v1/auth/sessions": many("/v1/auth/sessions?limit=100"),
    "DELETE /v1/auth/sessions/{session_id}": one("DELETE", "/v1/auth/sessions/{unknown}", answers={404}),
    "GET /v1/auth/security-events": many("/v1/auth/security-events?limit=100"),
    "POST /v1/auth/token": by_form(
        "/v1/auth/token", "grant_type=password&username=unknown{n}@example.com&password=x", HASH, answers={400}
    ),
    "POST /v1/auth/introspect": Case(
        lambda s: [
            request("POST", "/v1/auth/introspect", token=s.user.access, body=f"token={s.user.access}".encode()).replace(
                b"application/json", b"application/x-www-form-urlencoded"
            )
        ]
    ),
    "POST /v1/auth/revoke": by_form("/v1/auth/revoke", "token=rt_{n}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    "GET /.well-known/jwks.json": by_stranger("GET", "/.well-known/jwks.json"),
    "GET /.well-known/oauth-authorization-server": by_stranger("GET", "/.well-known/oauth-authorization-server"),
    "POST /v1/auth/register": by_stranger(
        "POST", "/v1/auth/register", {"email": "new{n}@example.com", "password": PASSWORD}, HASH, answers={201, 409}
    ),
    "POST /v1/auth/email/verify": by_stranger(
        "POST", "/v1/auth/email/verify", {"token": "{n}" + "a" * 40}, answers={400}
    ),
    "POST /v1/auth/email/resend": by_stranger(
        "POST", "/v1/auth/email/resend", {"email": "unknown{n}@example.com"}, answers={202, 429}
    ),
    "POST /v1/auth/email/change": one(
        "POST", "/v1/auth/email/change", WRONG_PASSWORD | {"new_email": "b@example.com"}, HASH, answers={403, 429}
    ),
    "POST /v1/auth/email/confirm": by_stranger(
        "POST", "/v1/auth/email/confirm", {"token": "{n}" + "a" * 40}, answers={400}
    ),
    "POST /v1/auth/password/forgot": by_stranger(
        "POST", "/v1/auth/password/forgot", {"email": "unknown{n}@example.com"}, answers={202, 429}
    ),
    "POST /v1/auth/password/reset": by_stranger(
        "POST", "/v1/auth/password/reset", {"token": "{n}" + "a" * 40, "new_password": PASSWORD}, HASH, answers={400}
    ),
    "POST /v1/auth/password/change": one(
        "POST", "/v1/auth/password/change", WRONG_PASSWORD | {"new_password": PASSWORD}, HASH, answers={403, 429}
    ),
    "POST /v1/auth/api-keys": one(
        "POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}, answers={201, 409}
    ),
    "GET /v1/auth/api-keys": many("/v1/auth/api-keys?limit=100"),
    "DELETE /v1/auth/api-keys/{key_id}": one("DELETE", "/v1/auth/api-keys/{unknown}", answers={404}),
    "GET /v1/auth/mfa": one("GET", "/v1/auth/mfa"),
    "POST /v1/auth/mfa/totp": one("POST", "/v1/auth/mfa/totp", answers={201}),
    "DELETE /v1/auth/mfa/totp": one("DELETE", "/v1/auth/mfa/totp", WRONG_PASSWORD, HASH, answers={403, 409, 429}),
    "POST /v1/auth/mfa/totp/activate": one(
        "POST", "/v1/auth/mfa/totp/activate", {"code": "123456"}, answers={401, 409, 429}
    ),
    "POST /v1/auth/mfa/recovery-codes": one(
        "POST", "/v1/auth/mfa/recovery-codes", WRONG_PASSWORD, HASH, answers={403, 409, 429}
    ),
    "GET /v1/auth/session": one("GET", "/v1/auth/session"),
    "POST /v1/auth/code": by_stranger("POST", "/v1/auth/code", {"email": "unknown{n}@example.com"}, answers={202, 429}),
    "POST /v1/auth/code/login": by_stranger(
        "POST", "/v1/auth/code/login", {"email": "unknown{n}@example.com", "code": "123456"}, answers={401, 429}
    ),
    "GET /v1/auth/passkeys": one("GET", "/v1/auth/passkeys"),
    "POST /v1/auth/passkeys": one("POST", "/v1/auth/passkeys", {"credential": _credential}, answers={400}),
    # The session is not fresh any more when a run is long.
    "POST /v1/auth/passkeys/options": one("POST", "/v1/auth/passkeys/options", answers={200, 403}),
    "PATCH /v1/auth/passkeys/{passkey_id}": one("PATCH", "/v1/auth/passkeys/{unknown}", {"name": "k"}, answers={404}),
    "DELETE /v1/auth/passkeys/{passkey_id}": one("DELETE", "/v1/auth/passkeys/{unknown}", answers={403, 404}),
    "POST /v1/auth/passkeys/login/options": by_stranger(
        "POST", "/v1/auth/passkeys/login/options", {"email": "unknown{n}@example.com"}
    ),
    "POST /v1/auth/passkeys/login": by_stranger(
        "POST", "/v1/auth/passkeys/login", {"credential": _assertion, "challenge": "{n}" + "a" * 40}, answers={401}
    ),
    "GET /verify-email": by_stranger("GET", "/verify-email?token=x"),
    "GET /change-email": by_stranger("GET", "/change-email?token=x"),
    "GET /reset-password": by_stranger("GET", "/reset-password?token=x"),
    "GET /forgot-password": by_stranger("GET", "/forgot-password"),
}
