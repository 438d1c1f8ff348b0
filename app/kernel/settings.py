"""The kernel's settings sections, and how settings are read.

Every value comes from the environment (`APP_<SECTION>_<FIELD>`), is validated once at start and never changes. A
secret may also be given as a file: `APP_SECRET_KEY_FILE=/run/secrets/key`. `app.settings` composes the sections of
all modules.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from app.kernel.validation.addresses import parse_sender

Environment = Literal["development", "production"]
PRODUCT = "Onehop"
"""The name for people, unless the settings give another. What is stored, signed or sealed has its own constants."""

# An address or name, which may be an IPv6 one in brackets, and a port.
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


class SettingsError(Exception):
    """Names everything that is wrong with the settings, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt field is an error.

    Every field has a description, and every number a `Unit`: `config` and `.env.example` print both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts, in the plural: seconds, bytes, connections."""

    name: str


Seconds = Annotated[float, Unit("seconds")]
WholeSeconds = Annotated[int, Unit("seconds")]
Days = Annotated[int, Unit("days")]
Bytes = Annotated[int, Unit("bytes")]
Connections = Annotated[int, Unit("connections")]
Requests = Annotated[int, Unit("requests")]
Messages = Annotated[int, Unit("messages")]


def url_of(*schemes: str) -> AfterValidator:
    """Refuses another scheme, and a port that is no number; the message does not tell the URL, which has a password."""

    def check(value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        scheme, _, rest = text.partition("://")
        if scheme not in schemes or not rest:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        hosts = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].split(",")
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise ValueError(
                "has a port that is no number, or a password whose signs are not written as %40 and the like"
            )
        return value

    return AfterValidator(check)


def _check_base(value: str) -> str:
    """Paths are appended to it, and every client sees it."""
    parts = urlsplit(value)
    if parts.query or parts.fragment or "?" in value or "#" in value:
        raise ValueError("must have no query and no fragment: paths are added to it")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must have no user and no password: give them in settings of their own")
    return value.rstrip("/")


BaseUrl = Annotated[str, url_of("https", "http"), AfterValidator(_check_base)]
"""A URL to which paths are appended; it ends without a slash."""
PostgresUrl = Annotated[SecretStr, url_of("postgresql", "postgres")]
RedisUrl = Annotated[SecretStr, url_of("redis", "rediss", "unix")]


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


# For a field whose variable lists several values.
BY_COMMAS = BeforeValidator(_split)
Texts = Annotated[tuple[str, ...], BY_COMMAS]


class DatabaseSettings(Section):
    """PostgreSQL: addresses, pools and time-outs."""

    url: PostgresUrl | None = Field(None, description="DSN; also read from DATABASE_URL. Unset: the embedded server.")
    direct_url: PostgresUrl | None = Field(
        None,
        description="DSN of PostgreSQL itself if `url` leads to a pooler; also read from DATABASE_DIRECT_URL. "
        "Migrations and the worker's lock need it.",
    )
    replica_urls: Annotated[tuple[PostgresUrl, ...], BY_COMMAS] = Field(
        (), description="DSNs of read replicas, separated by commas; also read from DATABASE_REPLICA_URLS."
    )
    replica_max_lag: Seconds = Field(10.0, ge=1, le=600, description="A replica further behind gets no reads.")
    pool_size: Connections = Field(10, ge=1, le=200, description="Pool of one process; fixed, not elastic.")
    export_pool_size: Connections = Field(
        4, ge=1, le=20, description="For long snapshots, apart from the pool: a worker runs as many exports at a time."
    )
    export_timeout: Seconds = Field(
        10.0, gt=0, le=600, description="Limit of a snapshot's statement, and of the next piece of a long one."
    )
    acquire_timeout: Seconds = Field(
        0.25, gt=0, le=10, description="How long a request waits for a connection of the pool; then 503."
    )
    connect_timeout: Seconds = Field(1.0, gt=0, le=30, description="Limit of connecting, for each host of the DSN.")
    statement_timeout: Seconds = Field(5.0, gt=0, le=300, description="Limit of one statement; then 503.")
    lock_timeout: Seconds = Field(1.0, gt=0, le=60, description="How long a statement waits for a lock; then 503.")
    idle_in_transaction_timeout: Seconds = Field(
        10.0, gt=0, le=600, description="PostgreSQL ends a connection that is idle inside a transaction for so long."
    )
    transaction_timeout: Seconds = Field(
        30.0, gt=0, le=600, description="Limit of a whole transaction. In force with PostgreSQL 17 or newer."
    )
    session_settings: bool = Field(
        default=True,
        description="Send the time-outs as startup parameters. Off behind PgBouncer, where ALTER ROLE sets them.",
    )

    @model_validator(mode="after")
    def _check_direct_url(self) -> Self:
        if self.direct_url is not None and self.url is None:
            raise ValueError("direct_url is of no use without url")
        return self

    @property
    def dsn(self) -> str:
        """Raises `ValueError` where there is none; the start of embedded servers sets it before."""
        if self.url is None:
            raise ValueError("the database URL is not set")
        return self.url.get_secret_value()

    @property
    def direct_dsn(self) -> str:
        """For what holds session state; raises as `dsn` does."""
        return self.dsn if self.direct_url is None else self.direct_url.get_secret_value()


class RedisSettings(Section):
    """Redis or Valkey. It may be absent; everything works without it, only slower."""

    url: RedisUrl | None = Field(None, description="URL; also read from REDIS_URL. Unset: the embedded server.")
    cache_url: RedisUrl | None = Field(None, description="A server of its own for the response cache. Unset: `url`.")
    cache_cluster: bool = Field(default=False, description="`cache_url` names a node of a Redis or Valkey Cluster.")
    limits_url: RedisUrl | None = Field(None, description="A server of its own for quotas. Unset: `url`.")
    connect_timeout: Seconds = Field(0.2, gt=0, le=10, description="Limit of connecting.")
    operation_timeout: Seconds = Field(
        0.1, gt=0, le=10, description="Limit of one command; the request then goes on without Redis."
    )
    breaker_threshold: Annotated[int, Unit("errors")] = Field(
        5, ge=1, le=100, description="Errors in a row that open the circuit breaker, which skips Redis."
    )
    breaker_cooldown: Seconds = Field(1.0, gt=0, le=60, description="Until an open breaker lets one probe through.")
    pool_size: Connections = Field(32, ge=1, le=1000, description="Upper bound for each server, in one process.")


class CacheSettings(Section):
    """The response cache."""

    enabled: bool = Field(default=True, description="Answer repeated reads from memory and Redis.")
    ttl: WholeSeconds = Field(
        300, ge=1, le=86_400, description="Lifetime of an entry; spread by 10 % so that entries do not end together."
    )
    local_entries: Annotated[int, Unit("entries")] = Field(
        10_000, ge=0, le=1_000_000, description="Upper bound of the entries kept in one process."
    )
    local_bytes: Bytes = Field(32 * 1024 * 1024, ge=0, description="Upper bound of the bodies kept in one process.")


class HttpSettings(Section):
    """The HTTP edge."""

    cors_origins: Texts = Field((), description="Origins that browsers may call from, separated by commas; `*`: all.")
    cors_credentials: bool = Field(default=False, description="Let those origins send credentials.")
    max_body_bytes: Bytes = Field(1024 * 1024, ge=1024, le=1024**3, description="Largest request body; above: 413.")
    request_timeout: Seconds = Field(10.0, gt=0, le=600, description="Limit of one request; then 504.")
    max_in_flight: Requests = Field(
        256, ge=1, le=100_000, description="Most requests worked on at one moment; fewer when latency rises."
    )
    max_waiting: Requests = Field(
        160, ge=0, le=100_000, description="Reads that may wait for their turn, and as many writes; above: 503."
    )
    max_wait: Seconds = Field(0.1, ge=0, le=10, description="How long a request waits for its turn; then 503.")
    idempotency_keys: Annotated[int, Unit("keys")] = Field(
        100_000,
        ge=256,
        le=100_000_000,
        description="Idempotency keys kept of one user for each operation, an answer counting a key for each KiB; "
        "above, a new key: 429.",
    )
    trusted_proxies: Texts = Field(
        (),
        description="CIDRs of the proxies whose header names the client's address, separated by commas; `none`: there "
        "are none. Production wants one or the other.",
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for", description="The header those proxies set. The other one comes from clients."
    )
    operator_networks: Texts | None = Field(
        None,
        description="CIDRs of the clients that /metrics and /readyz answer, separated by commas. Unset: loopback and "
        "private networks, in development every network.",
    )
    hsts: bool = Field(default=False, description="Send Strict-Transport-Security; on where TLS ends in front of us.")
    docs: bool | None = Field(None, description="Serve /docs. Unset: in development only.")

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_none(cls, value: object) -> object:
        return () if value == "none" else value

    @field_validator("trusted_proxies", "operator_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for network in value or ():
            ip_network(network, strict=False)
        return value


class LimitsSettings(Section):
    """Quotas: a request costs one unit, some cost more, and an answer from memory costs a fraction.

    A quota is there at once and comes back evenly within the window.
    """

    caller: Annotated[int, Unit("units")] = Field(
        120_000, ge=1, le=10**9, description="Quota of a user or an API key in a window."
    )
    network: Annotated[int | None, Unit("units")] = Field(
        None,
        ge=1,
        le=10**9,
        description="Quota of an IPv4 address or IPv6 /64 without a valid token. "
        "Unset: 3,000, in development 10,000,000.",
    )
    window: WholeSeconds = Field(60, ge=1, le=86_400, description="Length of the window.")
    cached_cost: Annotated[float, Unit("units")] = Field(
        0.05, ge=0, le=1, description="Cost of an answer from the cache of the process."
    )


class ConnectionSettings(Section):
    """What a client may ask of a connection before its requests reach the application."""

    max_head_bytes: Bytes = Field(
        32 * 1024, ge=1024, le=1024**2, description="Largest request line and header fields; above: 431."
    )
    max_head_fields: Annotated[int, Unit("fields")] = Field(
        100, ge=10, le=10_000, description="Most header fields of a request; above: 431."
    )
    max_target_bytes: Bytes = Field(8 * 1024, ge=256, le=60_000, description="Longest path and query; above: 414.")
    head_timeout: Seconds = Field(10.0, gt=0, le=300, description="Until the head of a request is complete; then 408.")
    body_timeout: Seconds = Field(30.0, gt=0, le=3600, description="Until the body of a request is complete; then 408.")
    min_rate: Annotated[int, Unit("bytes per second")] = Field(
        1024, ge=0, description="Slowest upload of a body, and slowest reading of a response."
    )
    write_timeout: Seconds = Field(
        30.0, gt=0, le=3600, description="A client that reads nothing for so long is disconnected."
    )
    max_unsent_bytes: Bytes = Field(
        256 * 1024**2,
        ge=1024**2,
        description="Answers that wait to be read by their clients; beyond, clients that keep most are disconnected.",
    )
    idle_timeout: Seconds = Field(
        75.0, gt=0, le=3600, description="Keep-alive; longer than that of a load balancer in front."
    )
    max_connections: Connections = Field(
        10_000, ge=1, description="Most of one process; at the limit the longest idle ones are closed."
    )
    max_pipelined: Requests = Field(
        16, ge=1, le=1000, description="Requests of one connection that may wait for the one before."
    )
    drain_delay: Seconds = Field(
        1.0, ge=0, le=60, description="Between /readyz turning 503 and the end of listening, for balancers to notice."
    )


class LoopSettings(Section):
    """The event loop of a server or worker process."""

    max_stall: Seconds = Field(
        5.0,
        ge=0,
        le=600,
        description="How long it may stand still; then the process ends, to be replaced. 0: without limit.",
    )


def _check_sender(value: str) -> str:
    parse_sender(value)
    return value


class MailSettings(Section):
    """E-mail."""

    smtp_url: Annotated[SecretStr, url_of("smtp", "smtp+starttls", "smtps")] | None = Field(
        None,
        description="smtp://user:password@host:25, smtp+starttls://… or smtps://…; Unset: the development mailbox.",
    )
    sender: Annotated[str, AfterValidator(_check_sender)] = Field(
        "no-reply@onehop.example",
        max_length=254,
        description="From header of e-mails: Name <address>, or an address, to which APP_NAME is added.",
    )
    timeout: Seconds = Field(15.0, gt=0, le=120, description="Limit of each step of an SMTP dialogue.")
    recipient_hourly: Messages = Field(
        10, ge=1, le=1_000_000, description="E-mails of one purpose that go to one address within an hour."
    )
    sender_hourly: Messages = Field(
        100, ge=1, le=1_000_000, description="E-mails that one account sends within an hour."
    )
    suppression_days: Days = Field(
        14, ge=1, le=365, description="How long no e-mail goes to an address whose server knows no such mailbox."
    )


class LogSettings(Section):
    """Logging to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    format: Literal["json", "text"] | None = Field(None, description="Unset: text in development, JSON in production.")
    access: bool = Field(default=True, description="Log one line for each request.")


def may_be_file(name: str) -> bool:
    """Whether `name` may be given as `name_FILE`: our variables, and the short names of URLs with a password."""
    return name.startswith("APP_") or name in {
        "DATABASE_URL",
        "DATABASE_DIRECT_URL",
        "DATABASE_REPLICA_URLS",
        "REDIS_URL",
    }


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """`environ` with every `NAME_FILE` of ours replaced by `NAME` holding the file's text.

    The second part of the answer says which files cannot be read, and which names are given in both forms.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for name, value in environ.items():
        target = name.removesuffix("_FILE")
        if target == name or not may_be_file(target):
            values[name] = value
            continue
        if target in environ:
            problems.append(f"{name}: {target} is set too; give one of them")
            continue
        try:
            values[target] = Path(value).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}: cannot be read ({type(error).__name__})")
    return values, problems
