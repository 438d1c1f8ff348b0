"""What the layers learn of one request, in one object that every layer, dependency and route asks.

async def record_events(state: RequestStateDep, ...) -> Response:
state.charge(5)
"""

from collections.abc import AsyncIterable, Callable, Collection, Hashable
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.types import Scope

from app.kernel.errors import AppError
from app.kernel.fairness.ticket import AdmissionTicket, UploadCount
from app.kernel.headers.request_headers import RepeatedHeader, read_headers
from app.kernel.rate_limits import QuotaBucket
from app.kernel.request.principal import Principal

_KEY = "onehop.request"


@dataclass(slots=True, eq=False)
class RequestState:
    """One request from its head on; `state_of` makes it once.

    `headers` are its fields by name, in lower case, as `read_headers` has them, and `peer` is the address at the other
    end of the connection. `credential` is what the request names its caller by (`SessionCookie.credential_of`), and
    `network` that of a client without a good one. `paid` was charged to `quota`. `route` is the path template of
    what answers, and `endpoint` the function that does, once they are known.
    """

    headers: dict[bytes, bytes]
    repeated_header: bytes | None
    peer: str | None
    # The edge has been asked already (`Edge.decide`).
    is_decided: bool = False
    credential: bytes | None = None
    principal: Principal | None = None
    # For the route to raise, if it is not public.
    authentication_error: AppError | None = None
    network: str | None = None
    quota: QuotaBucket | None = None
    paid: float = 0.0
    # None where every request is admitted.
    admission: AdmissionTicket | None = None
    route: str | None = None
    endpoint: Callable[..., Any] | None = None
    # The body, for what looks at it after `kernel.http.direct`.
    parsed_json: Any = None

    def part(self, headers: dict[bytes, bytes]) -> "RequestState":
        """The state of a request that this one makes in its own process for its caller. It pays for itself.

        Raises:
            QuotaExceeded: the quota is known to be used up.
        """
        part = replace(
            self, headers=headers, repeated_header=None, paid=0.0, route=None, endpoint=None, parsed_json=None
        )
        part.charge(1.0)
        return part

    def check_headers(self) -> None:
        """Raises RepeatedHeader if a field that holds one value came more than once."""
        if self.repeated_header is not None:
            raise RepeatedHeader(self.repeated_header.decode("latin-1").title())

    def charge(self, cost: float) -> None:
        """Charges the caller `cost` units, what the request has paid for already included.

        Raises:
            QuotaExceeded: the quota is known to be used up.
        """
        if self.quota is not None and cost > self.paid:
            self.quota.charge(cost - self.paid)
            self.paid = cost

    def charge_done(self, cost: float) -> None:
        """Charges the caller `cost` units for work that is done, what the request has paid for already included. It is
        never refused; the requests that follow wait until it is paid.
        """
        if self.quota is not None and cost > self.paid:
            self.quota.tokens -= cost - self.paid
            self.paid = cost

    async def acquire_slot(self) -> None:
        """Waits for a slot, if the request goes on without one so far.

        Raises:
            Overloaded: there is none.
        """
        if self.admission is not None:
            await self.admission.acquire(self._caller())

    async def acquire_hashing_slot(self) -> None:
        """Takes a slot of those that hash a password, in place of the one that the request has.

        Raises:
            Overloaded: there is none.
        """
        if self.admission is not None:
            await self.admission.acquire_hashing(self._caller())

    async def assign_slot(self) -> None:
        """Counts the slot as its caller's, once both are known.

        Raises:
            Overloaded: the caller has half of the slots, and others want some.
        """
        if self.admission is not None:
            await self.admission.assign(self._caller())

    def release_slot(self) -> None:
        """Gives the slot back, if the request has one. From now on the request only sends or waits."""
        if self.admission is not None:
            self.admission.release(self.route if self.endpoint is None else self.endpoint)

    def pause_slot(self) -> UploadCount | None:
        """Takes the slot away until the rest of the body has come (`AdmissionTicket.pause`)."""
        return None if self.admission is None else self.admission.pause()

    def paced(self, chunks: AsyncIterable[bytes], *, is_compressed: bool) -> AsyncIterable[bytes]:
        """The chunks of a stored file, no faster than its caller's share of the time allows."""
        return chunks if self.admission is None else self.admission.pace(chunks, is_compressed=is_compressed)

    def _caller(self) -> Hashable | None:
        """The user, or the network of a client that has not proved to be one; None: not known yet."""
        return self.principal.user_id if self.principal is not None else self.network


def state_of(scope: Scope) -> RequestState:
    """The state of a request, from its ASGI scope.

    From the first call on `scope["headers"]` has a line for each of `RequestState.headers`, for Starlette and FastAPI.
    """
    state: RequestState | None = scope.get(_KEY)
    if state is None:
        fields = scope["headers"]
        headers = {name: value for name, value in fields}  # noqa: C416 - takes two thirds of the time of `dict(fields)`
        repeated = None
        if len(headers) != len(fields) or b"cookie" in headers:
            headers, repeated = read_headers(fields)
            scope["headers"] = list(headers.items())
        client = scope.get("client")
        state = scope[_KEY] = RequestState(headers, repeated, client[0] if client else None)
    return state


def part_of(scope: Scope, path: str, query: str, wanted: Collection[bytes]) -> Scope:
    """The scope of `GET path` as a part of the request with `scope`, with only the header fields in `wanted`.

    Raises:
        QuotaExceeded: as in `RequestState.part`.
    """
    state = state_of(scope)
    headers = {name: value for name, value in state.headers.items() if name in wanted}
    return {
        **scope,
        "method": "GET",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query.encode(),
        "headers": list(headers.items()),
        "path_params": {},
        _KEY: state.part(headers),
    }


def ignore_header(scope: Scope, name: bytes) -> None:
    """From now on the request has no such field for any layer, route or framework."""
    headers = state_of(scope).headers
    if headers.pop(name, None) is not None:
        scope["headers"] = list(headers.items())


async def _state(request: Request) -> RequestState:
    return state_of(request.scope)


RequestStateDep = Annotated[RequestState, Depends(_state)]
