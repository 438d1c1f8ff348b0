"""Callers that do not give up, and keep account of what they were told."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx

# An acknowledged write is seen by everybody after it. Without messages a process learns in two seconds that it is cut
# off and asks the database from then on; the rest is for a machine that does many things at once.
FRESH_SECONDS = 5.0
_PATIENCE = 30.0
_OK = 300
_MISSING = 404
_SERVER_ERROR = 500
_RETRIED = frozenset({409, 429, 502, 503, 504})


@dataclass
class Ledger:
    """What all callers were told. `phase` is what happens at the moment."""

    phase: str = "calm"
    events: set[str] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)
    """Answers that may never come: 500, or a refusal that nothing explains."""
    stale: list[str] = field(default_factory=list)
    given_up: int = 0
    """Writes with an unknown outcome."""

    def record(self, phase: str, answer: httpx.Response, seconds: float) -> None:
        self.statuses[phase][str(answer.status_code)] += 1
        if answer.request.method == "GET" and answer.status_code < _OK:
            self.seconds[phase].append(seconds)
        is_expected = answer.status_code < _OK or answer.status_code in _RETRIED
        if not is_expected or answer.status_code == _SERVER_ERROR:
            self.failures.append(
                f"{answer.request.method} {answer.request.url.path} while {phase}: "
                f"{answer.status_code} {answer.text[:200]}"
            )


class Caller:
    """One person at work: reads mostly, and writes with keys, so that a try may be made again."""

    def __init__(self, client: httpx.AsyncClient, ledger: Ledger, email: str, password: str) -> None:
        self._client = client
        self._ledger = ledger
        self._credentials = {"email": email, "password": password}
        self._headers: dict[str, str] = {}
        self._name = 0
        self._acknowledged: list[tuple[float, int]] = []
        # A change with an unknown outcome may be made at any time, also after a later one.
        self.unknown: set[int] = set()
        self.id = ""

    async def sign_up(self) -> None:
        """Makes the account."""
        answer = await self._client.post("/v1/auth/register", json=self._credentials)
        answer.raise_for_status()
        self.id = answer.json()["user"]["id"]
        self._use(answer.json()["tokens"])

    @property
    def last_name(self) -> int:
        """The number of the last name that was acknowledged."""
        return self._acknowledged[-1][1] if self._acknowledged else 0

    async def work(self, stop: asyncio.Event, pause: float) -> None:
        """Until `stop`, and then to the end of what was begun."""
        while not stop.is_set():
            dice = random.random()
            if dice < 0.6:
                await self._read()
            elif dice < 0.85:
                await self._record()
            elif dice < 0.93:
                await self._rename()
            elif dice < 0.98:
                await self._submit()
            else:
                await self._log_in()
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause)

    async def _read(self) -> None:
        began = monotonic()
        answer = await self._try("GET", "/v1/users/me")
        if answer is None or answer.status_code >= _OK:
            return
        seen = int((answer.json()["display_name"] or "0").rpartition(" ")[2])
        settled = [(number, when) for when, number in self._acknowledged if when < began - FRESH_SECONDS]
        known, when = max(settled, default=(0, began))
        if seen < known and seen not in self.unknown:
            age = f"{began - when:.1f} s after"
            self._ledger.stale.append(f"{seen} instead of {known} {age} while {self._ledger.phase}")
        await self._try("GET", "/v1/overview")

    async def _record(self) -> None:
        marker = uuid4().hex
        if await self._insist("/v1/events", {"kind": "chaos", "properties": {"marker": marker}}) is not None:
            self._ledger.events.add(marker)

    async def _submit(self) -> None:
        body = {"kind": "export.events", "args": {"format": "csv"}}
        answer = await self._insist("/v1/jobs", body)
        if answer is not None:
            self._ledger.jobs.add(answer["id"])

    async def _rename(self) -> None:
        self._name += 1
        number = self._name
        answer = await self._try("PATCH", "/v1/users/me", {"display_name": f"Name {number}"})
        if answer is not None and answer.status_code < _OK:
            self._acknowledged.append((monotonic(), number))
        else:
            self.unknown.add(number)

    async def _log_in(self) -> None:
        answer = await self._try("POST", "/v1/auth/login", self._credentials)
        if answer is not None and answer.status_code < _OK:
            self._use(answer.json()["tokens"])

    def _use(self, tokens: Mapping[str, Any]) -> None:
        self._headers = {"Authorization": f"Bearer {tokens['access_token']}"}

    async def _insist(self, path: str, body: Mapping[str, Any]) -> Any:
        """What is answered in the end to a write that must be made once; None if that is unknown."""
        headers = {"Idempotency-Key": uuid4().hex}
        deadline = monotonic() + _PATIENCE
        while monotonic() < deadline:
            answer = await self._try("POST", path, body, headers)
            if answer is not None and answer.status_code < _OK:
                return answer.json()
            if answer is not None and answer.status_code not in _RETRIED:
                return None
            await asyncio.sleep(random.uniform(0.1, 0.5))
        self._ledger.given_up += 1
        return None

    async def _try(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response | None:
        began, phase = monotonic(), self._ledger.phase
        try:
            answer = await self._client.request(method, path, json=body, headers={**self._headers, **(headers or {})})
        except httpx.TransportError as error:
            self._ledger.statuses[phase][type(error).__name__] += 1
            return None
        self._ledger.record(phase, answer, monotonic() - began)
        return answer
