"""Finds the caller of a request. A credential seen before costs a dictionary look-up and no I/O."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.auth import Authenticator
from app.kernel.errors import AppError
from app.kernel.headers.session_cookie import SessionCookie
from app.kernel.middleware.rate_limit import NetworkQuota
from app.kernel.observability.probes import PROBE_PATHS
from app.kernel.request.state import RequestState, state_of


class Authentication:
    """Sets `RequestState.principal`, or `authentication_error` for the route to raise if it is not public.

    An `Authorization` header hides the session cookie. To look at a credential not seen before costs a signature or a
    statement, so it needs some quota of its network.
    """

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, cookie: SessionCookie, networks: NetworkQuota
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._cookie = cookie
        self._networks = networks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        credential = state.credential
        if b"cookie" in state.headers:
            # Also for what needs no caller: a foreign page must not log a browser out.
            self._cookie.check(scope["method"], state.headers, credential)
        if credential is not None:
            state.principal = self._authenticator.cached_principal(credential)
            # Probes need no caller, and must not compete with other clients of their network.
            if state.principal is None and scope["path"] not in PROBE_PATHS:
                if not await self._networks.admit(state, send):
                    return
                # Looking a credential up costs more than most requests.
                await state.acquire_slot()
                await state.assign_slot()
                await self._authenticate(state, credential)
        await self._app(scope, receive, send)

    async def _authenticate(self, state: RequestState, credential: bytes) -> None:
        try:
            state.principal = await self._authenticator.authenticate(credential)
        except AppError as error:
            state.authentication_error = error
        else:
            self._networks.give_back(state)
            if state.admission is not None:
                state.admission.change_caller()
