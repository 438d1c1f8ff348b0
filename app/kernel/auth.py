"""The caller of a request, and its permissions.

The authentication middleware puts it into the `RequestState` without asking any other system; a route declares what it
needs by a typed alias, and a route that declares nothing stops the application from starting:

    async def get_me(principal: CurrentPrincipal) -> ...                                  # any authenticated caller
    async def change_password(principal: SessionPrincipal) -> ...                         # not an API key
    async def ingest(principal: Annotated[Principal, Require("events:write")]) -> ...     # with this scope
    async def ban(principal: Annotated[Principal, RequireRole("admin")]) -> ...           # with this role
    @router.post("/login", dependencies=[Public])                                         # public

It declares what it costs there too, where that is more than one unit: `Require("jobs:write", cost=5)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import OAuth2PasswordBearer
from typing_extensions import TypeAliasType

from app.kernel.errors import Forbidden, Unauthenticated
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestState, state_of

SCOPES = {
    "profile:read": "Read your profile and preferences",
    "profile:write": "Change your profile and preferences",
    "events:read": "Read your events",
    "events:write": "Record events",
    "jobs:read": "Read your jobs, invoices and their files",
    "jobs:write": "Start, cancel and retry your jobs",
    "webhooks:manage": "Manage your webhook endpoints",
    "admin": "Administer all accounts",
}
INTROSPECT = "introspect"
# Those that no user's token has.
SERVICE_SCOPES = {INTROSPECT: "Introspect any token"}
Role = TypeAliasType("Role", Literal["user", "admin"])
# Its name in the API document.
BEARER_SCHEME = "BearerToken"
_BEARER = b"bearer "
_USER_SCOPES = frozenset(SCOPES) - {"admin"}
SCOPES_OF_SERVICES = _USER_SCOPES | SERVICE_SCOPES.keys()
SCOPES_OF_ROLE: dict[str, frozenset[str]] = {"user": _USER_SCOPES, "admin": frozenset(SCOPES)}


class InvalidToken(Unauthenticated):
    """The access token or API key is malformed, not signed by this service, or unknown."""

    code = "invalid_token"
    title = "Invalid access token"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, challenge='Bearer error="invalid_token"')


class InsufficientScope(Forbidden):
    """The token lacks a scope, which `WWW-Authenticate` names."""

    code = "insufficient_scope"
    title = "Insufficient scope"

    def __init__(self, scopes: Iterable[str]) -> None:
        wanted = " ".join(sorted(scopes))
        super().__init__(
            f"This needs the scope {wanted}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{wanted}"'},
        )


class RoleRequired(Forbidden):
    """The call is for administrators."""

    code = "role_required"
    title = "Insufficient role"


class SessionRequired(Forbidden):
    """An API key may do what its scopes say, but not change how the account is protected. Log in."""

    code = "session_required"
    title = "Session required"


class Authenticator(Protocol):
    """Turns a credential (`SessionCookie.credential_of`) into a `Principal`; plugged in by the composition root."""

    def cached_principal(self, credential: bytes) -> Principal | None:
        """The caller behind a credential that was verified before and is still good; no I/O."""
        ...

    async def authenticate(self, credential: bytes) -> Principal:
        """The caller behind a credential not seen before, which `cached_principal` knows from now on; an
        `Authorization` header in its usual spelling.

        Raises:
            Unauthenticated: it is of a scheme that is none of ours.
            InvalidToken: it is not good.
            Unavailable: that cannot be found out at the moment.
        """
        ...


def bearer_token(header: bytes | None) -> str | None:
    """The token in an `Authorization` header (RFC 6750, section 2.1); None if there is none, or of another scheme."""
    if header is None or header[: len(_BEARER)].lower() != _BEARER:
        return None
    return header[len(_BEARER) :].strip().decode("latin-1")


def principal_of(state: RequestState) -> Principal:
    """The caller of a request.

    Raises:
        Unauthenticated: no credentials were sent.
        InvalidToken, Unavailable: what the authenticator said of them.
    """
    if state.principal is not None:
        return state.principal
    # Not by way of a variable: the error's traceback would refer to it, and it to the error.
    raise state.authentication_error or Unauthenticated


async def authenticate_again(request: Request) -> None:
    """For an answer that took long, or goes on for long: the caller may have logged out meanwhile.

    Raises:
        InvalidToken: the caller's credential is not good any more.
        Unavailable: that cannot be found out at the moment.
    """
    await authenticate_credential(request, state_of(request.scope).credential or b"")


async def authenticate_credential(request: Request, credential: bytes) -> Principal:
    """The caller behind a credential that did not come with this request, or came with its beginning.

    Raises:
        InvalidToken: it is not good, or not any more.
        Unavailable: that cannot be found out at the moment.
    """
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.cached_principal(credential) or await authenticator.authenticate(credential)


@dataclass(frozen=True, slots=True)
class Permission:
    """What a route demands of its caller, and takes from the caller's quota; checked before the body is read."""

    is_public: bool = False
    scopes: frozenset[str] = frozenset()
    role: Role | None = None
    needs_session: bool = False
    cost: float = 1.0
    # Admission has slots of their own for those.
    hashes_password: bool = False

    def check(self, state: RequestState) -> None:
        """Lets the request pass.

        Raises:
            Unauthenticated, InvalidToken, Unavailable: there is no caller.
            InsufficientScope, RoleRequired, SessionRequired: the caller may not do this.
            QuotaExceeded: the caller may not do this so often.
        """
        if self.is_public:
            state.charge(self.cost)
            return
        principal = principal_of(state)
        state.charge(self.cost)
        self.check_principal(principal)

    def check_principal(self, principal: Principal) -> None:
        """Lets the caller pass, whatever it costs.

        Raises:
            InsufficientScope, RoleRequired, SessionRequired
        """
        if not self.scopes <= principal.scopes:
            raise InsufficientScope(self.scopes - principal.scopes)
        if self.role is not None and self.role not in principal.roles:
            raise RoleRequired(f"This needs the role {self.role}.")
        if self.needs_session and principal.kind != "user":
            raise SessionRequired
        if self.needs_session and principal.actor_id is not None:
            raise SessionRequired("An administrator who acts for a user does not manage the user's credentials.")
        if self.needs_session and principal.is_narrowed:
            raise SessionRequired("This needs a token whose scope was not narrowed.")


class _Demand(OAuth2PasswordBearer):
    """The dependency that carries a `Permission` in a route's signature and hands over the caller.

    It is the security scheme of the documentation too; the middleware has read the header before the framework runs.
    """

    def __init__(self, permission: Permission) -> None:
        super().__init__(
            tokenUrl="/v1/auth/token",
            refreshUrl="/v1/auth/token",
            scheme_name=BEARER_SCHEME,
            scopes=SCOPES,
            description="An access token or an API key.",
        )
        self.permission = permission

    async def __call__(self, request: Request) -> Principal:  # type: ignore[override]  # FastAPI asks for no base type
        return principal_of(state_of(request.scope))


class _PublicDemand:
    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self) -> None:
        """Nothing is asked of the caller."""


def Require(*scopes: str, cost: float = 1.0) -> Any:  # noqa: N802 - reads as a declaration in `Annotated[Principal, Require("…")]`
    """Demands an authenticated caller with all of `scopes`. `cost` is in units of the caller's quota."""
    unknown = set(scopes) - SCOPES.keys()
    if unknown:
        message = f"unknown scopes: {sorted(unknown)}"
        raise ValueError(message)
    return Security(_Demand(Permission(scopes=frozenset(scopes), cost=cost)), scopes=list(scopes))


def RequireRole(role: Literal["admin"], *, cost: float = 1.0, needs_session: bool = False) -> Any:  # noqa: N802 - as above
    """Demands an authenticated caller with `role`, and a credential that carries the scope of the same name; with
    `needs_session` not an API key.
    """
    permission = Permission(scopes=frozenset({role}), role=role, cost=cost, needs_session=needs_session)
    return Security(_Demand(permission), scopes=[role])


CurrentPrincipal = Annotated[Principal, Require()]
# For what changes credentials: only a session, never an API key.
SessionPrincipal = Annotated[Principal, Security(_Demand(Permission(needs_session=True)))]
Public = Depends(_PublicDemand(Permission(is_public=True)))
# Where a password is hashed, which is the most that a request makes this process compute.
_HASHING_COST = 10.0
HashingPublic = Depends(_PublicDemand(Permission(is_public=True, cost=_HASHING_COST, hashes_password=True)))
HashingPrincipal = Annotated[
    Principal, Security(_Demand(Permission(needs_session=True, cost=_HASHING_COST, hashes_password=True)))
]


async def begin_hashing(state: RequestState) -> None:
    """For a public route of which only some calls hash a password: makes this one as if the route had declared it.

    Raises:
        QuotaExceeded: the quota is known to be used up.
        Overloaded: as many passwords are hashed as can be.
    """
    state.charge(_HASHING_COST)
    await state.acquire_hashing_slot()


def declared_permission(dependant: Dependant) -> Permission | None:
    """The permission in the signature of a route; None if there is none.

    Raises:
        RuntimeError: it declares more than one.
    """
    found = list(_permissions(dependant))
    if len(found) > 1:
        message = f"{dependant.path} declares {len(found)} permissions"
        raise RuntimeError(message)
    return found[0] if found else None


def _permissions(dependant: Dependant) -> Iterable[Permission]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, _Demand | _PublicDemand):
            yield dependency.call.permission
        else:
            yield from _permissions(dependency)
