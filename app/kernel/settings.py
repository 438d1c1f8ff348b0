"""The kernel's settings sections, and how settings are read.

Every value comes from the environment (`APP_<SECTION>_<FIELD>`), is validated once at start and never changes. A
secret may also be given as a file: `APP_SECRET_KEY_FILE=/run/secrets/key`. `app.settings` composes the sections of
all modules.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

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

Environment = Literal["development", "production"]

# An address or name, which may be an IPv6 one in brackets, and a port.
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


class SettingsError(Exception):
    """Names everything that is wrong with the settings, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    """Postgres. Time-outs are in seconds."""

    url: PostgresUrl | None = Field(None, description="DSN; also read from DATABASE_URL. None: the embedded server.")
    direct_url: PostgresUrl | None = Field(
        None,
        description="DSN of Postgres itself if `url` leads to a pooler; also read from DATABASE_DIRECT_URL. "
        "Migrations and the worker's lock need it.",
    )
    replica_urls: Annotated[tuple[PostgresUrl, ...], BY_COMMAS] = Field(
        (), description="DSNs of read replicas, by commas; also read from DATABASE_REPLICA_URLS."
    )
    replica_max_lag: float = Field(10.0, ge=1, le=600, description="A replica further behind gets no reads.")
    pool_size: int = Field(10, ge=1, le=200, description="Connections of one process; fixed, not elastic.")
    export_pool_size: int = Field(2, ge=1, le=20, description="Connections for long snapshots, apart from the pool.")
    export_timeout: float = Field(
        10.0, gt=0, le=600, description="A snapshot's statement, or the next piece of a long one, may take so long."
    )
    acquire_timeout: float = Field(0.25, gt=0, le=10)
    connect_timeout: float = Field(1.0, gt=0, le=30)
    statement_timeout: float = Field(5.0, gt=0, le=300)
    lock_timeout: float = Field(1.0, gt=0, le=60)
    idle_in_transaction_timeout: float = Field(10.0, gt=0, le=600)
    transaction_timeout: float = Field(30.0, gt=0, le=600, description="In force with PostgreSQL 17 or newer.")
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
        """Raises `ValueError` where there is none; whoever starts embedded servers has set it before."""
        if self.url is None:
            raise ValueError("the database URL is not set")
        return self.url.get_secret_value()

    @property
    def direct_dsn(self) -> str:
        """For what holds session state; raises as `dsn` does."""
        return self.dsn if self.direct_url is None else self.direct_url.get_secret_value()


class RedisSettings(Section):
    """Redis or Valkey. It may be absent; everything works without it, only slower. Time-outs are in seconds."""

    url: RedisUrl | None = Field(None, description="URL; also read from REDIS_URL. None: the embedded server.")
    cache_url: RedisUrl | None = Field(None, description="A server of its own for the response cache. None: `url`.")
    cache_cluster: bool = Field(default=False, description="`cache_url` names a node of a Redis or Valkey Cluster.")
    limits_url: RedisUrl | None = Field(None, description="A server of its own for quotas. None: `url`.")
    connect_timeout: float = Field(0.2, gt=0, le=10)
    operation_timeout: float = Field(0.1, gt=0, le=10)
    breaker_threshold: int = Field(5, ge=1, le=100, description="Errors in a row that open the breaker.")
    breaker_cooldown: float = Field(1.0, gt=0, le=60, description="Until one probe is let through.")
    pool_size: int = Field(32, ge=1, le=1000)


class CacheSettings(Section):
    """The response cache."""

    enabled: bool = True
    ttl: int = Field(300, ge=1, le=86_400, description="Seconds; spread by 10 % so that entries do not end together.")
    local_entries: int = Field(10_000, ge=0, le=1_000_000)
    local_bytes: int = Field(32 * 1024 * 1024, ge=0, description="Upper bound of the bodies kept in one process.")


class HttpSettings(Section):
    """The HTTP edge."""

    cors_origins: Texts = ()
    cors_credentials: bool = False
    max_body_bytes: int = Field(1024 * 1024, ge=1024, le=1024**3)
    request_timeout: float = Field(10.0, gt=0, le=600, description="Seconds until a request is given up with 504.")
    max_in_flight: int = Field(
        256, ge=1, le=100_000, description="Upper bound of the requests worked on at one moment; fewer if latency asks."
    )
    max_waiting: int = Field(160, ge=0, le=100_000, description="Reads that may wait for their turn; as many writes.")
    max_wait: float = Field(0.1, ge=0, le=10, description="Seconds a request may wait for its turn.")
    trusted_proxies: Texts = Field((), description="CIDRs whose word is believed on whom they speak for.")
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for", description="The header those proxies set. The other one comes from clients."
    )
    hsts: bool = Field(default=False, description="Send Strict-Transport-Security; on where TLS ends in front of us.")
    docs: bool | None = Field(None, description="Serve /docs. None: in development only.")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network, strict=False)
        return value


class LimitsSettings(Section):
    """Quotas, in units: a request costs one, some cost more, and an answer from memory costs a fraction.

    A quota is there at once and comes back evenly within the window.
    """

    caller: int = Field(120_000, ge=1, le=10**9, description="Of a user or an API key, in a window.")
    network: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Of an IPv4 address or IPv6 /64, without a valid token. None: 3,000, in development 10,000,000.",
    )
    window: int = Field(60, ge=1, le=86_400, description="Seconds.")
    remembered_cost: float = Field(0.05, ge=0, le=1, description="Units of an answer from the cache of the process.")


class ConnectionSettings(Section):
    """What a client may ask of a connection before its requests reach the application. Times are in seconds."""

    max_head_bytes: int = Field(32 * 1024, ge=1024, le=1024**2, description="Request line and fields; above: 431.")
    max_head_fields: int = Field(100, ge=10, le=10_000)
    max_target_bytes: int = Field(8 * 1024, ge=256, le=60_000, description="Path and query; above: 414.")
    head_timeout: float = Field(10.0, gt=0, le=300, description="Until the head of a request is there; then 408.")
    body_timeout: float = Field(30.0, gt=0, le=3600, description="Until the body of a request is there; then 408.")
    min_rate: int = Field(1024, ge=0, description="Bytes a second that a body, or the reader of an answer, must make.")
    write_timeout: float = Field(30.0, gt=0, le=3600, description="A client that does not read is cut off after it.")
    idle_timeout: float = Field(75.0, gt=0, le=3600, description="Keep-alive; longer than that of a balancer in front.")
    max_connections: int = Field(10_000, ge=1, description="Of one process; at the limit the longest idle ones go.")
    max_pipelined: int = Field(16, ge=1, le=1000, description="Requests of a connection that wait for their turn.")
    drain_delay: float = Field(
        1.0, ge=0, le=60, description="Between /readyz turning 503 and the end of listening, for balancers to notice."
    )


class LoopSettings(Section):
    """The event loop of a server or worker process."""

    max_stall: float = Field(
        5.0,
        ge=0,
        le=600,
        description="Seconds for which it may stand still; then the process ends, to be replaced. 0: for ever.",
    )


class MailSettings(Section):
    """E-mail."""

    smtp_url: Annotated[SecretStr, url_of("smtp", "smtp+starttls", "smtps")] | None = Field(
        None,
        description="smtp://user:password@host:25, smtp+starttls://… or smtps://…; None: the development mailbox.",
    )
    sender: str = Field("Onehop <no-reply@onehop.example>", max_length=254)
    timeout: float = Field(15.0, gt=0, le=120, description="Seconds for each step of an SMTP dialogue.")


class LogSettings(Section):
    """Logging to standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] | None = Field(None, description="None: text in development, JSON in production.")
    access: bool = Field(default=True, description="One line a request.")


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """`environ` with every `NAME_FILE` of ours replaced by `NAME` holding the file's text.

    The second part of the answer says which files cannot be read, and which names are given in both forms.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for name, value in environ.items():
        target = name.removesuffix("_FILE")
        if target == name or not (
            name.startswith("APP_")
            or target in {"DATABASE_URL", "DATABASE_DIRECT_URL", "DATABASE_REPLICA_URLS", "REDIS_URL"}
        ):
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
