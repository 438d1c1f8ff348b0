"""The root of all settings: the kernel's sections and each module's, read once at start.

`APP_ENV=production` refuses to start without real secrets and URLs; development fills the gaps with the embedded
servers and a secret of its own that is kept in `.data/`.
"""

import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from app.identity.settings import IdentitySettings
from app.jobs.settings import JobsSettings
from app.kernel.listening import base_url, listening_address
from app.kernel.settings import (
    PRODUCT,
    BaseUrl,
    CacheSettings,
    ConnectionSettings,
    DatabaseSettings,
    Environment,
    HttpSettings,
    LimitsSettings,
    LogSettings,
    LoopSettings,
    MailSettings,
    RedisSettings,
    Section,
    SettingsError,
    Unit,
    may_be_file,
    read_environment,
)
from app.kernel.validation.text import VisibleLine
from app.users.settings import UsersSettings
from app.weak_settings import (
    cors_weakness,
    database_weakness,
    hash_weakness,
    proxies_weakness,
    public_url_weakness,
    redis_weakness,
    secret_weakness,
    smtp_weakness,
)

DOTENV_NAME = ".env"


def _check_name(value: str) -> str:
    if ":" in value:
        raise ValueError("must not contain a colon, at which authenticator apps end the name")
    return value


class Settings(BaseSettings):
    """Frozen settings of one process. Made by `load_settings`, never read from the environment by itself."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="APP_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,
    )

    env: Environment = Field(
        "development",
        description="production refuses to start without real secrets and URLs; development fills the gaps.",
    )
    secret_key: SecretStr = Field(
        description="At least 32 random bytes; every other key is derived from it. Required in production; "
        "development makes one and keeps it in the data directory."
    )
    name: Annotated[str, VisibleLine(64), AfterValidator(_check_name)] = Field(
        PRODUCT,
        description="Name of the product in e-mails, pages, authenticator apps and the API document. Nothing that is "
        "stored, signed or sealed depends on it.",
    )
    debug: bool = Field(default=False, description="Answer unexpected errors with a traceback; never in production.")
    host: str = Field("127.0.0.1", description="Address that the API listens on; also read from HOST.")
    port: int = Field(8000, ge=1, le=65_535, description="Port that the API listens on; also read from PORT.")
    workers: Annotated[int, Unit("processes")] = Field(1, ge=1, le=64, description="API processes behind one port.")
    public_url: BaseUrl | None = Field(
        None,
        description="Base of the links in e-mails, and issuer of the tokens. Required in production; unset in "
        "development: http and the host and port that the API listens on.",
    )
    data_dir: Path = Field(
        Path(".data"), description="Directory of the embedded servers, the artifacts and the development secret."
    )
    commit: Annotated[str, VisibleLine(64)] = Field(
        "unknown",
        description="Commit that the program was built of, shown by the metric onehop_build_info; the image sets it.",
    )
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    cache: CacheSettings = CacheSettings()
    http: HttpSettings = HttpSettings()
    connections: ConnectionSettings = ConnectionSettings()
    limits: LimitsSettings = LimitsSettings()
    mail: MailSettings = MailSettings()
    log: LogSettings = LogSettings()
    loop: LoopSettings = LoopSettings()
    users: UsersSettings = UsersSettings()
    identity: IdentitySettings = IdentitySettings()
    jobs: JobsSettings = JobsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def is_production(self) -> bool:
        return self.env == "production"

    @property
    def base_url(self) -> str:
        """`public_url`; unset, where a server that listens on `host` and `port` is reached from this machine."""
        return self.public_url or base_url(self.host, self.port)

    @property
    def has_mailbox(self) -> bool:
        """Whether e-mails are kept in a folder and shown at /dev/mailbox instead of being sent."""
        return self.mail.smtp_url is None and not self.is_production


class _Environment(EnvSettingsSource):
    """pydantic-settings' reading of variables, from a given mapping instead of the process's own."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._values.items() if value}


_SECTIONS = {
    name
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
_SHORT_NAMES = {
    "DATABASE_URL": "APP_DATABASE_URL",
    "DATABASE_DIRECT_URL": "APP_DATABASE_DIRECT_URL",
    "DATABASE_REPLICA_URLS": "APP_DATABASE_REPLICA_URLS",
    "REDIS_URL": "APP_REDIS_URL",
    "HOST": "APP_HOST",
    "PORT": "APP_PORT",
}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that `environ` describes; by default those of `process_environ`.

    Raises:
        SettingsError: with every problem at once, by the name of its variable.
    """
    if environ is None:
        environ = process_environ()
    values, problems = read_environment(environ)
    # A problem is told by the name that was given.
    given_as: dict[str, str] = {}
    for short, name in _SHORT_NAMES.items():
        if values.get(short) and name not in values:
            values[name] = values[short]
            given_as[name] = short
    problems += [f"{name}: there is no such setting" for name in values if not _is_known(name)]
    try:
        tree = _Environment(values)()
    except PydanticSettingsError as error:
        raise SettingsError([*problems, str(error)]) from error
    production = tree.get("env") == "production"
    if "secret_key" not in tree and not production:
        tree["secret_key"] = _development_secret(Path(tree.get("data_dir", ".data")))
    settings: Settings | None = None
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        # What production needs is told below, in words that fit.
        wrong = (
            item
            for item in error.errors(include_input=False, include_url=False)
            if not (production and item["type"] == "missing")
        )
        for item in wrong:
            location = [str(part) for part in item["loc"]]
            name = variable_name(*location)
            problems.append(f"{given_as.get(name, name)}: {item['msg']}")
    if production:
        problems.extend(_production_problems(tree, settings))
    if problems or settings is None:
        raise SettingsError(sorted(set(problems)))
    return settings


def served_base_url(settings: Settings) -> str:
    """`base_url` in a process that serves: unset, it follows the socket that is really open.

    `uvicorn app.main:app --port 9000` and `fastapi dev --port 9000` leave HOST and PORT as they are.
    """
    if settings.public_url is None and (address := listening_address()) is not None:
        return base_url(*address)
    return settings.base_url


def process_environ() -> dict[str, str]:
    """The environment of the process over the `.env` file of the working directory, of which no parent is searched.

    A variable of the environment hides every name that the file has for the same setting: `make run PORT=8001` wins
    over `APP_PORT` of the file. What the drivers would read by themselves is taken out of the process (`is_foreign`).

    Raises:
        SettingsError: the file cannot be read.
    """
    path = Path.cwd() / DOTENV_NAME
    try:
        # A byte order mark, as Windows editors write it, is no part of the first name.
        file = dotenv_values(path, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8 text; save it as UTF-8"]) from error
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read ({error.strerror})"]) from error
    given = {long_name(name) for name in os.environ}
    from_file = {name: value for name, value in file.items() if value is not None and long_name(name) not in given}
    environ = from_file | dict(os.environ)
    for name in [name for name in os.environ if is_foreign(name, environ)]:
        del os.environ[name]
    return environ


def is_foreign(name: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable that is no setting would lead a driver of ours to another server, or keep it from ours.

    A developer's shell has PGHOST, PGSSLROOTCERT or AWS_SESSION_TOKEN for another program; `DATABASE_URL` can say all
    of it. Without a key of our own, the machine's role in AWS is found by the variables of AWS.
    """
    own_key = "APP_JOBS_ARTIFACT_S3_KEY_ID"
    has_own_key = any(environ.get(given) for given in (own_key, f"{own_key}_FILE"))
    return name.startswith("PG") or (has_own_key and name.startswith("AWS_"))


def long_name(name: str) -> str:
    """The variable that `name` stands for: `DATABASE_URL_FILE` → `APP_DATABASE_URL`; other names stay as they are."""
    plain = name.removesuffix("_FILE")
    if plain != name and may_be_file(plain):
        name = plain
    return _SHORT_NAMES.get(name, name)


def variable_name(*path: str) -> str:
    """The environment variable of a setting: `("database", "url")` → `APP_DATABASE_URL`."""
    return "_".join(("APP", *path[:2])).upper()


def _is_known(name: str) -> bool:
    if not name.startswith("APP_"):
        return True
    key = name.removeprefix("APP_").lower()
    section, _, field = key.partition("_")
    return key in Settings.model_fields.keys() - _SECTIONS or (section in _SECTIONS and bool(field))


def _development_secret(data_dir: Path) -> str:
    """A random secret shared by all processes that use this data directory."""
    try:
        return _shared_secret(data_dir)
    except OSError as error:
        advice = storage_advice(error) or "if another user made it, run as that user, or remove it to start afresh"
        raise SettingsError([f"APP_DATA_DIR: {data_dir} cannot be used ({error.strerror}); {advice}"]) from error


def storage_advice(error: OSError) -> str | None:
    """What to do about a disk that takes nothing; None if it is another fault."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "make room on the disk, or name a folder on another one by APP_DATA_DIR"
    if error.errno == errno.EROFS:
        return "the file system is read-only: name another folder by APP_DATA_DIR"
    return None


def _shared_secret(data_dir: Path) -> str:
    path = data_dir / "development-secret"
    data_dir.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(48))
    try:
        # A link fails if another process was first, so that all of them read one and the same secret.
        path.hardlink_to(fresh)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    return path.read_text(encoding="ascii")


def _production_problems(tree: Mapping[str, Any], settings: Settings | None) -> list[str]:
    """Everything that production must not start with; what needs other settings to be valid is looked at last."""
    database, redis = tree.get("database", {}), tree.get("redis", {})
    weaknesses = {
        "APP_SECRET_KEY": secret_weakness(str(tree.get("secret_key", ""))),
        "DATABASE_URL": database_weakness(str(database.get("url", ""))),
        "REDIS_URL": redis_weakness(str(redis.get("url", ""))),
        "APP_MAIL_SMTP_URL": smtp_weakness(str(tree.get("mail", {}).get("smtp_url", ""))),
        "APP_PUBLIC_URL": public_url_weakness(str(tree.get("public_url", ""))),
        "APP_HTTP_TRUSTED_PROXIES": None
        if tree.get("http", {}).get("trusted_proxies")
        else "is required in production: the networks of the proxies in front of the API, or none",
    }
    if "direct_url" in database:
        weaknesses["DATABASE_DIRECT_URL"] = database_weakness(str(database["direct_url"]))
    for role in ("cache", "limits"):
        if f"{role}_url" in redis:
            weaknesses[f"APP_REDIS_{role.upper()}_URL"] = redis_weakness(str(redis[f"{role}_url"]))
    if settings is not None:
        http, identity = settings.http, settings.identity
        weaknesses |= {
            "DATABASE_REPLICA_URLS": next(
                filter(None, (database_weakness(url.get_secret_value()) for url in settings.database.replica_urls)),
                None,
            ),
            "APP_JOBS_REDIS_URLS": next(
                filter(None, (redis_weakness(url.get_secret_value()) for url in settings.jobs.redis_urls)), None
            ),
            "APP_DEBUG": "must be off in production" if settings.debug else None,
            "APP_JOBS_WEBHOOK_HTTP": "must be off in production" if settings.jobs.webhook_http else None,
            "APP_JOBS_WEBHOOK_ALLOW": "must be empty in production, where webhooks reach no private address"
            if settings.jobs.webhook_allow
            else None,
            "APP_HTTP_CORS_ORIGINS": cors_weakness(http.cors_origins, credentials=http.cors_credentials),
            "APP_IDENTITY_HASH_MEMORY_KIB": hash_weakness(identity.hash_memory_kib, identity.hash_iterations),
        }
        weaknesses["APP_HTTP_TRUSTED_PROXIES"] = weaknesses["APP_HTTP_TRUSTED_PROXIES"] or proxies_weakness(
            http.trusted_proxies
        )
    return [f"{name}: {weakness}" for name, weakness in weaknesses.items() if weakness is not None]


__all__ = [
    "DOTENV_NAME",
    "Settings",
    "SettingsError",
    "is_foreign",
    "load_settings",
    "long_name",
    "process_environ",
    "served_base_url",
    "storage_advice",
    "variable_name",
]
