"""The context of a running job, and what all of them share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import Counter

from app.jobs.queries.execution import lock_run
from app.jobs.records import ClaimedJob, NewArtifact
from app.jobs.service.cleaning import make_room
from app.jobs.service.completion import LeaseLost
from app.jobs.service.mail_outbox import MailOutbox
from app.jobs.service.storage import ArtifactStore, StoredFile
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId
from app.kernel.mail import Mail, MailRefused
from app.kernel.queue import PermanentJobError, Queue, ServiceT
from app.kernel.queue.slots import Runner
from app.kernel.sealing import Keys

_artifact_bytes = Counter("onehop_jobs_artifact_bytes", "Bytes of files written by jobs.")


@dataclass(frozen=True, slots=True)
class JobServices:
    """What jobs work with. One per worker; `others` by type. `artifact_days`: for how long files are kept,
    `user_file_bytes`: how much of one user.
    """

    db: Database
    cache: Cache
    queue: Queue
    clock: Clock
    mail: MailOutbox
    store: ArtifactStore
    keys: Keys
    product: str
    base_url: str
    artifact_days: int
    user_file_bytes: int
    others: Mapping[type, Any]


@dataclass(slots=True)
class Run:
    """A job in this process. `progress` is JSON text that has not been written yet."""

    job: ClaimedJob
    runner: Runner
    progress: str | None = None
    artifacts: list[NewArtifact] = field(default_factory=list)
    stored_keys: list[str] = field(default_factory=list)
    # Its end is part of the handler's own transaction, or waits to be written.
    completed: bool = False
    ended: bool = False


class RunContext:
    """What a handler gets (`kernel.queue.JobContext`)."""

    def __init__(
        self,
        run: Run,
        services: JobServices,
        complete: Callable[[Run, Tx, Mapping[str, Any] | None], Awaitable[None]],
    ) -> None:
        self.job_id = run.job.id
        self.user_id = run.job.user_id
        self.attempt = run.job.attempt
        self.created_at = run.job.created_at
        self.is_continued = run.job.attempt > 1 or run.job.postponed is not None
        self.db = services.db
        self.cache = services.cache
        self.queue = services.queue
        self.clock = services.clock
        self.keys = services.keys
        self.product = services.product
        self.base_url = services.base_url
        self._run = run
        self._services = services
        self._complete = complete

    @property
    def owner(self) -> UserId:
        if self.user_id is None:
            raise PermanentJobError("no_owner", "Jobs of this kind belong to a user.")
        return self.user_id

    def service(self, kind: type[ServiceT]) -> ServiceT:
        found: ServiceT = self._services.others[kind]
        return found

    async def send_mail(self, mail: Mail, *, prepare: Callable[[Tx], Awaitable[bool]] | None = None) -> None:
        try:
            await self._services.mail.send(self, mail, prepare=prepare)
        except MailRefused as error:
            # Only administrators see the error of a job without an owner, and may read what the server said.
            said = f" ({error})" if self.user_id is None else ""
            raise PermanentJobError(error.code, error.explanation + said) from error

    async def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        self._run.progress = to_json({"done": done, "total": total, "message": message})

    @asynccontextmanager
    async def artifact(self, name: str, content_type: str) -> AsyncIterator[StoredFile]:
        run = self._run
        if self.user_id is not None:
            await make_room(self.db, self._services.store, self.user_id, self._services.user_file_bytes)
        async with self._services.store.create(run.job.id, run.job.run_token, name) as (key, file):
            run.stored_keys.append(key)
            yield file
        _artifact_bytes.inc(file.size)
        run.artifacts.append(
            NewArtifact(
                job_id=run.job.id,
                name=name,
                content_type=content_type,
                size=file.size,
                sha256=file.hash.digest(),
                storage_key=key,
                days=self._services.artifact_days,
            )
        )

    @asynccontextmanager
    async def transaction(self, label: str) -> AsyncIterator[Tx]:
        async with self.db.transaction(label) as tx:
            if not await lock_run(tx, self._run.job.id, self._run.job.run_token):
                raise LeaseLost
            yield tx

    async def complete(self, tx: Tx, result: Mapping[str, Any] | None = None) -> None:
        await self._complete(self._run, tx, result)


def to_json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
