"""What a kind of job is, what a handler gets, and how it says that trying again is useless."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict

from app.kernel.cache import Cache
from app.kernel.clock import Clock, in_utc
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId
from app.kernel.mail import Mail
from app.kernel.queue.contracts import DEFAULT_PRIORITY
from app.kernel.queue.producer import Queue
from app.kernel.sealing import Keys

# A date and time among a kind's arguments, in UTC.
Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]


REDACTED = "[redacted]"


@dataclass(frozen=True, slots=True)
class _Secret:
    """The type of `SECRET`."""


# Marks a field of arguments whose value administrators are not shown: `text: Annotated[str, SECRET]`.
SECRET = _Secret()


class JobArgs(BaseModel):
    """Base of every kind's arguments. A worker ignores fields it does not know."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @classmethod
    def redact(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Stored arguments as administrators see them: without the values of fields that are secret or unknown."""
        shown = {name for name, field in cls.model_fields.items() if SECRET not in field.metadata}
        return {name: value if name in shown else REDACTED for name, value in args.items()}


class PermanentJobError(Exception):
    """The job failed and would fail again. `code` is stable and shown to the owner, and so is the message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SnoozeJob(Exception):
    """Run the job again after `seconds`, without using up an attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


class RetryJob(Exception):
    """The attempt failed; the next one comes after `seconds` instead of after the kind's own delay.

    The last attempt is repeated until the job is `least_age` seconds old.
    """

    def __init__(self, seconds: float, code: str, message: str, *, least_age: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.code = code
        self.least_age = least_age


class ArtifactWriter(Protocol):
    """A file in the making. It becomes visible when, and only when, the job has succeeded."""

    async def write(self, data: bytes) -> None: ...


ServiceT = TypeVar("ServiceT")


class JobContext(Protocol):
    """What a handler may use while it runs. `product` is its name for people, `base_url` that of links.

    `is_continued`: an earlier run has tried the same since the job was put in, or started over.
    """

    job_id: UUID
    user_id: UserId | None
    attempt: int
    created_at: datetime
    is_continued: bool
    db: Database
    cache: Cache
    queue: Queue
    clock: Clock
    keys: Keys
    product: str
    base_url: str

    @property
    def owner(self) -> UserId:
        """The user whose job it is. Raises PermanentJobError if it belongs to no user."""
        ...

    def service(self, kind: type[ServiceT]) -> ServiceT:
        """The worker's own service, or its section of the settings, of a type."""
        ...

    async def send_mail(self, mail: Mail, *, prepare: Callable[[Tx], Awaitable[bool]] | None = None) -> None:
        """Hands `mail` over. `prepare` stores what it announces, if it may be sent now; False: nothing is sent.

        Raises:
            MailWithheld: it must not be sent.
            PermanentJobError: it will never be taken.
            SnoozeJob, RetryJob: it may be sent later.
        """
        ...

    async def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        """Tells the owner how far the job is; cheap, and written at most twice a second."""
        ...

    def artifact(self, name: str, content_type: str) -> AbstractAsyncContextManager[ArtifactWriter]:
        """Opens a file that is streamed, hashed and published together with the job's success."""
        ...

    def transaction(self, label: str) -> AbstractAsyncContextManager[Tx]:
        """A transaction that can only commit while this run still owns the job.

        A worker that was frozen past its lease finds the job taken, and none of its writes are kept.
        """
        ...

    async def complete(self, tx: Tx, result: Mapping[str, Any] | None = None) -> None:
        """Marks the job as succeeded inside `tx`, so that its effect and its end are one commit."""
        ...


ArgsT = TypeVar("ArgsT", bound=JobArgs)
Handler = Callable[[JobContext, ArgsT], Awaitable[Mapping[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class DataAccess:
    """What a caller needs, beside the scopes of jobs, to start or cancel a kind of job or to have its files, because
    these hold or do what other routes give for such scopes, or to a session alone.
    """

    scopes: frozenset[str] = frozenset()
    needs_session: bool = False


_NO_DATA = DataAccess()


@dataclass(frozen=True, slots=True)
class JobKind(Generic[ArgsT]):
    """A declared kind. Times are in seconds; a retry waits up to `backoff_base * 2 ** (attempt - 1)`."""

    name: str
    handler: Handler[ArgsT]
    args: type[ArgsT]
    queue: str
    public: bool
    access: DataAccess
    max_attempts: int
    timeout: int
    priority: int
    backoff_base: float
    backoff_cap: float


def job(
    name: str,
    *,
    args: type[ArgsT],
    queue: str = "default",
    public: bool = False,
    access: DataAccess = _NO_DATA,
    max_attempts: int = 8,
    timeout: int = 300,
    priority: int = DEFAULT_PRIORITY,
    backoff_base: float = 5.0,
    backoff_cap: float = 3600.0,
) -> Callable[[Handler[ArgsT]], JobKind[ArgsT]]:
    """Declares the decorated coroutine function as the handler of kind `name`.

    `public` kinds may be submitted through the API by any user whose token has `access`. Other kinds need it to be
    retried and cancelled.
    """

    def declare(handler: Handler[ArgsT]) -> JobKind[ArgsT]:
        return JobKind(
            name=name,
            handler=handler,
            args=args,
            queue=queue,
            public=public,
            access=access,
            max_attempts=max_attempts,
            timeout=timeout,
            priority=priority,
            backoff_base=backoff_base,
            backoff_cap=backoff_cap,
        )

    return declare
