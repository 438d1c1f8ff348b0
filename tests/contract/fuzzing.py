"""What Schemathesis has to know to reach further than 401 and 422: how to log in, and values that no schema can tell.

It runs in a process of its own, which finds this file by the variable SCHEMATHESIS_HOOKS.
"""

import os
from itertools import count
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis import AuthContext, Case, GenerationMode, HookContext

from app.kernel.observability.gc_tuning import collect_rarely_until_exit
from tests.fixtures.http import NO_AUTHORITIES

# A tenth of what Schemathesis computes was to look for garbage.
collect_rarely_until_exit()

_BASE_URL = os.environ["FUZZ_URL"]
_EMAIL = os.environ.get("FUZZ_EMAIL")
_PASSWORD = os.environ.get("FUZZ_PASSWORD")
_numbers = count()

schemathesis.openapi.format("timezone", st.sampled_from(["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"]))

if _EMAIL is not None:

    @schemathesis.auth(retry_on=[401])
    class LoggedIn:
        """Logs in again once the session has been ended, which some of the calls do."""

        def get(self, _: Case[Any], __: AuthContext) -> str:
            body = {"email": _EMAIL, "password": _PASSWORD}
            answer = httpx.post(f"{_BASE_URL}/v1/auth/login", json=body, verify=NO_AUTHORITIES).raise_for_status()
            token: str = answer.json()["tokens"]["access_token"]
            return token

        def set(self, case: Case[Any], data: str, _: AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(_: HookContext, case: Case[Any], __: dict[str, Any]) -> None:
    """A cursor belongs to a list and a caller, and a key to one request; no schema tells such values."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    case.query.pop("cursor", None)
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"fuzz-{next(_numbers)}"
