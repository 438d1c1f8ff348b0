"""Settings: read once, every error at once, secrets from files, nothing weak in production."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.kernel.settings import SettingsError
from app.settings import load_settings, process_environ, variable_name
from app.weak_settings import secret_weakness
from tests.fixtures.application import ROOT

SECRET = "V7m2x9Qp4LrT6wZs8KdN1hJb5YcG3fUe"
DEVELOPMENT = {"APP_SECRET_KEY": SECRET}
PRODUCTION = {
    "APP_ENV": "production",
    "APP_SECRET_KEY": SECRET,
    "APP_PUBLIC_URL": "https://api.example.com",
    "DATABASE_URL": "postgresql://app:kT9vQ2xL@db.example.com/onehop?sslmode=verify-full",
    "REDIS_URL": "rediss://:zR4kW8nB@cache.example.com",
    "APP_MAIL_SMTP_URL": "smtps://mailer:pW3xR7@mail.example.com",
    "APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8",
}


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load_settings(environ)
    return raised.value.problems


def test_variables_reach_their_sections() -> None:
    settings = load_settings(
        DEVELOPMENT
        | {
            "DATABASE_URL": "postgresql://one/x",
            "PORT": "8123",
            "HOST": "0.0.0.0",  # noqa: S104 - a value to be read
            "APP_WORKERS": "3",
            "APP_DATABASE_POOL_SIZE": "7",
            "APP_HTTP_CORS_ORIGINS": "https://a.example.com, https://b.example.com,",
            "APP_CACHE_ENABLED": "false",
            "UNRELATED": "x",
        }
    )
    assert settings.database.dsn == settings.database.direct_dsn == "postgresql://one/x"
    assert (settings.port, settings.host, settings.workers, settings.database.pool_size) == (8123, "0.0.0.0", 3, 7)  # noqa: S104
    assert settings.http.cors_origins == ("https://a.example.com", "https://b.example.com")
    assert settings.cache.enabled is False
    assert settings.redis.url is None


def test_the_long_name_wins() -> None:
    settings = load_settings(DEVELOPMENT | {"PORT": "1", "APP_PORT": "2"})
    assert settings.port == 2


def test_an_empty_variable_is_an_absent_one() -> None:
    assert load_settings(DEVELOPMENT | {"APP_PORT": "", "DATABASE_URL": ""}).port == 8000


def test_settings_never_change() -> None:
    settings = load_settings(DEVELOPMENT)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.http.max_waiting = 1  # type: ignore[misc]


def test_secrets_do_not_show() -> None:
    settings = load_settings(PRODUCTION)
    assert SECRET not in repr(settings)
    assert "kT9vQ2xL" not in repr(settings)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        DEVELOPMENT
        | {
            "APP_PORT": "70000",
            "APP_DATABASE_POOL_SIZE": "many",
            "APP_HTTP_COLOUR": "red",
            "APP_TYPO": "1",
            "APP_LOG_LEVEL": "loud",
            "REDIS_URL_FILE": str(tmp_path / "missing"),
        }
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "APP_DATABASE_POOL_SIZE",
        "APP_HTTP_COLOUR",
        "APP_LOG_LEVEL",
        "APP_PORT",
        "APP_TYPO",
        "REDIS_URL_FILE",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_DATABASE_URL", "db.example/onehop"),
        ("APP_DATABASE_URL", "mysql://db.example/onehop"),
        ("APP_DATABASE_URL", "postgresql://app:pass:word@db.example:port/onehop"),
        ("APP_DATABASE_REPLICA_URLS", "postgresql://one/x,two/x"),
        ("APP_REDIS_URL", "localhost:6379"),
        ("APP_REDIS_URL", "redis://localhost:port"),
        ("APP_JOBS_REDIS_URLS", "http://localhost"),
        ("APP_MAIL_SMTP_URL", "mail.example"),
        ("APP_JOBS_ARTIFACT_URL", "ftp://files"),
        ("APP_PUBLIC_URL", "onehop.example"),
    ],
)
def test_urls_that_lead_nowhere(name: str, value: str) -> None:
    (problem,) = problems_of(DEVELOPMENT | {name: value})
    assert problem.startswith(name)
    assert value not in problem


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:p%40ss@[::1]:5432,b.example,c.example:5433/onehop?sslmode=require",
        "postgresql:///onehop?host=/run/postgresql",
        "postgres://postgres@/onehop?host=%2Ftmp%2Fa%20b&port=5433",
    ],
)
def test_urls_that_lead_somewhere(url: str) -> None:
    assert load_settings(DEVELOPMENT | {"DATABASE_URL": url}).database.dsn == url


def test_a_data_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    (problem,) = problems_of({"APP_DATA_DIR": str(tmp_path / "data")})
    assert problem.startswith(f"APP_DATA_DIR: {tmp_path / 'data'} cannot be used (File exists)")


@pytest.mark.parametrize(
    ("given", "told"),
    [({"PORT": "abc"}, "PORT"), ({"APP_PORT": "abc"}, "APP_PORT"), ({"PORT": "1", "APP_PORT": "abc"}, "APP_PORT")],
)
def test_a_problem_is_told_by_the_name_that_was_given(given: dict[str, str], told: str) -> None:
    (problem,) = problems_of(DEVELOPMENT | given)
    assert problem.startswith(f"{told}: ")


def test_values_are_not_told() -> None:
    assert "a-secret-in-the-wrong-place" not in str(
        problems_of(DEVELOPMENT | {"APP_PORT": "a-secret-in-the-wrong-place"})
    )


def test_secrets_from_files(tmp_path: Path) -> None:
    key, database = tmp_path / "key", tmp_path / "database"
    key.write_text(f"{SECRET}\n")
    database.write_text("postgresql://file/x\n")
    settings = load_settings({"APP_SECRET_KEY_FILE": str(key), "DATABASE_URL_FILE": str(database)})
    assert settings.secret_key.get_secret_value() == SECRET
    assert settings.database.dsn == "postgresql://file/x"


def test_a_pooler_before_postgres() -> None:
    direct = {"DATABASE_DIRECT_URL": "postgresql://itself/x"}
    database = load_settings(DEVELOPMENT | {"DATABASE_URL": "postgresql://pooler/x"} | direct).database
    assert (database.dsn, database.direct_dsn) == ("postgresql://pooler/x", "postgresql://itself/x")
    (problem,) = problems_of(DEVELOPMENT | direct)
    assert problem == "APP_DATABASE: Value error, direct_url is of no use without url"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems_of({"APP_SECRET_KEY_FILE": str(path), "APP_DATA_DIR": str(tmp_path)})
    assert problem.startswith("APP_SECRET_KEY_FILE: cannot be read")


def test_a_secret_given_twice(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    assert problems_of({"APP_SECRET_KEY": SECRET, "APP_SECRET_KEY_FILE": str(key)}) == [
        "APP_SECRET_KEY_FILE: APP_SECRET_KEY is set too; give one of them"
    ]


def test_development_makes_a_secret_and_keeps_it(tmp_path: Path) -> None:
    environ = {"APP_DATA_DIR": str(tmp_path / "data")}
    first = load_settings(environ).secret_key.get_secret_value()
    assert len(first) >= 48
    assert load_settings(environ).secret_key.get_secret_value() == first
    assert (tmp_path / "data" / "development-secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["development-secret"]


def test_production_with_everything_it_needs() -> None:
    assert load_settings(PRODUCTION).is_production


def test_production_names_everything_that_is_missing() -> None:
    problems = problems_of({"APP_ENV": "production"})
    assert {problem.split(":")[0] for problem in problems} == {
        "APP_SECRET_KEY",
        "DATABASE_URL",
        "REDIS_URL",
        "APP_PUBLIC_URL",
        "APP_MAIL_SMTP_URL",
        "APP_HTTP_TRUSTED_PROXIES",
    }


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"APP_SECRET_KEY": "short"}, "APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": "a" * 64}, "APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": "changeme-" + SECRET}, "APP_SECRET_KEY"),
        ({"DATABASE_URL": "postgresql://app:postgres@db/onehop"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app@db/onehop"}, "DATABASE_URL"),
        ({"DATABASE_DIRECT_URL": "postgresql://app@db/onehop"}, "DATABASE_DIRECT_URL"),
        ({"APP_PUBLIC_URL": "http://api.example.com"}, "APP_PUBLIC_URL"),
        ({"APP_DEBUG": "true"}, "APP_DEBUG"),
        ({"APP_JOBS_WEBHOOK_HTTP": "true"}, "APP_JOBS_WEBHOOK_HTTP"),
        ({"APP_JOBS_WEBHOOK_ALLOW": "10.0.0.0/8"}, "APP_JOBS_WEBHOOK_ALLOW"),
        ({"APP_HTTP_CORS_ORIGINS": "*", "APP_HTTP_CORS_CREDENTIALS": "true"}, "APP_HTTP_CORS_ORIGINS"),
        ({"APP_HTTP_CORS_ORIGINS": "https://a.example,null"}, "APP_HTTP_CORS_ORIGINS"),
        ({"APP_HTTP_CORS_ORIGINS": "http://a.example", "APP_HTTP_CORS_CREDENTIALS": "true"}, "APP_HTTP_CORS_ORIGINS"),
        ({"APP_SECRET_KEY": "0123456789abcdef0123456789abcdef"}, "APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": "zyxwvutsrqponmlkjihgfedcba987654"}, "APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": "qwertyuiopasdfghjklzxcvbnm1234567890"}, "APP_SECRET_KEY"),
        ({"APP_SECRET_KEY": "Kd93kfLq02Zx" * 4}, "APP_SECRET_KEY"),
        ({"DATABASE_URL": "postgresql://app:Postgres@db/onehop"}, "DATABASE_URL"),
        ({"DATABASE_REPLICA_URLS": "postgresql://app:kT9vQ2xL@a/x,postgresql://app@b/x"}, "DATABASE_REPLICA_URLS"),
        ({"APP_MAIL_SMTP_URL": "smtp://mailer:pW3xR7@mail.example.com"}, "APP_MAIL_SMTP_URL"),
        ({"APP_MAIL_SMTP_URL": "smtp://mailer:pW3xR7@relay:2525"}, "APP_MAIL_SMTP_URL"),
        ({"APP_MAIL_SMTP_URL": "smtp://mail.example.com"}, "APP_MAIL_SMTP_URL"),
        ({"APP_MAIL_SMTP_URL": "smtp://9.9.9.9"}, "APP_MAIL_SMTP_URL"),
        ({"APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,0.0.0.0/0"}, "APP_HTTP_TRUSTED_PROXIES"),
        ({"APP_HTTP_TRUSTED_PROXIES": "0.0.0.0/1,128.0.0.0/1"}, "APP_HTTP_TRUSTED_PROXIES"),
        ({"APP_HTTP_TRUSTED_PROXIES": "::/0"}, "APP_HTTP_TRUSTED_PROXIES"),
        ({"APP_HTTP_TRUSTED_PROXIES": ""}, "APP_HTTP_TRUSTED_PROXIES"),
        ({"DATABASE_URL": "postgresql://onehop:development-only@postgres:5432/onehop"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app:change%2Dme@db/onehop"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app:kT9vQ2xL@db.example.com/onehop"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app:kT9vQ2xL@db.example.com/onehop?sslmode=prefer"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app:kT9vQ2xL@db,203.0.114.5/onehop"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app:kT9vQ2xL@/onehop?host=db.example.com"}, "DATABASE_URL"),
        ({"DATABASE_DIRECT_URL": "postgresql://app:kT9vQ2xL@db.example.com/onehop"}, "DATABASE_DIRECT_URL"),
        ({"REDIS_URL": "redis://:zR4kW8nB@cache.example.com"}, "REDIS_URL"),
        ({"REDIS_URL": "rediss://cache.example.com"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://[2a00:1450::1]:6379/0"}, "REDIS_URL"),
        ({"APP_REDIS_CACHE_URL": "redis://cache.example.com"}, "APP_REDIS_CACHE_URL"),
        ({"APP_REDIS_LIMITS_URL": "redis://cache.example.com"}, "APP_REDIS_LIMITS_URL"),
        ({"APP_JOBS_REDIS_URLS": "redis://queue,redis://cache.example.com"}, "APP_JOBS_REDIS_URLS"),
        ({"APP_IDENTITY_HASH_MEMORY_KIB": "1024", "APP_IDENTITY_HASH_ITERATIONS": "1"}, "APP_IDENTITY_HASH_MEMORY_KIB"),
        ({"APP_IDENTITY_HASH_ITERATIONS": "1"}, "APP_IDENTITY_HASH_MEMORY_KIB"),
        ({"APP_PUBLIC_URL": "https://api.example.com/?next=x"}, "APP_PUBLIC_URL"),
        ({"APP_PUBLIC_URL": "https://api.example.com/#part"}, "APP_PUBLIC_URL"),
        ({"APP_PUBLIC_URL": "https://admin:pW3xR7@api.example.com"}, "APP_PUBLIC_URL"),
    ],
)
def test_production_refuses_what_is_weak(changes: dict[str, str], variable: str) -> None:
    (problem,) = problems_of(PRODUCTION | changes)
    assert problem.startswith(f"{variable}: ")
    assert not any(value in problem for value in changes.values() if len(value) > 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"APP_SECRET_KEY": "3c5e0f6d8a91b2741d7fe9a0c4b8366e"},
        {"APP_SECRET_KEY": "w1QzX0yJ4m9sTn2bGh7uVk5cRd8eLp3a+/oI6fA="},
        {"APP_MAIL_SMTP_URL": "smtp://127.0.0.1:25"},
        {"APP_MAIL_SMTP_URL": "smtp://relay:25"},
        {"APP_MAIL_SMTP_URL": "smtp+starttls://mailer:pW3xR7@mail.example.com"},
        {"APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,fc00::/7,203.0.113.7"},
        {"APP_HTTP_TRUSTED_PROXIES": "none"},
        {"DATABASE_URL": "postgresql://app:kT9vQ2xL@10.1.2.3,[fd00::1]:5433/onehop"},
        {"DATABASE_URL": "postgresql://app:kT9vQ2xL@db.data.svc.cluster.local/onehop"},
        {"DATABASE_URL": "postgresql://app:kT9vQ2xL@db.example.com/onehop?sslmode=require"},
        {"REDIS_URL": "redis://valkey:6379/0"},
        {"REDIS_URL": "redis://[::1]:6379"},
        {"REDIS_URL": "unix:///run/valkey.sock"},
        {"APP_HTTP_CORS_ORIGINS": "https://a.example", "APP_HTTP_CORS_CREDENTIALS": "true"},
        {"APP_HTTP_CORS_ORIGINS": "*"},
        {"APP_IDENTITY_HASH_MEMORY_KIB": "12288", "APP_IDENTITY_HASH_ITERATIONS": "3"},
        {"APP_PUBLIC_URL": "https://example.com/api"},
    ],
)
def test_production_takes_what_is_strong(changes: dict[str, str]) -> None:
    assert load_settings(PRODUCTION | changes).is_production


def test_no_random_secret_is_refused() -> None:
    for _ in range(2_000):
        for secret in (secrets.token_hex(16), secrets.token_hex(32), secrets.token_urlsafe(32)):
            assert secret_weakness(secret) is None, secret


@pytest.mark.parametrize(
    ("variables", "base"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"HOST": "0.0.0.0", "PORT": "9001"}, "http://127.0.0.1:9001"),  # noqa: S104 - all interfaces are meant
        ({"HOST": "::", "PORT": "9001"}, "http://[::1]:9001"),
        ({"PORT": "9001", "APP_PUBLIC_URL": "https://example.com/api/"}, "https://example.com/api"),
    ],
)
def test_links_lead_to_the_port_unless_an_address_is_set(variables: dict[str, str], base: str) -> None:
    assert load_settings({"APP_SECRET_KEY": "k" * 32} | variables).base_url == base


def test_production_takes_a_socket_without_password() -> None:
    assert load_settings(PRODUCTION | {"DATABASE_URL": "postgresql://app@/onehop?host=/run/postgresql"}).is_production


def test_production_exits_with_one_message() -> None:
    environ = os.environ | {"APP_ENV": "production", "APP_DEBUG": "1", "APP_PORT": "x"}
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    for name in ("APP_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "APP_PUBLIC_URL", "APP_PORT"):
        assert done.stderr.count(f"{name}: ") == 1
    assert "Traceback" not in done.stderr


def test_names_of_variables() -> None:
    assert variable_name("database", "pool_size") == "APP_DATABASE_POOL_SIZE"
    assert variable_name("port") == "APP_PORT"


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two levels deep, and an environment without any setting."""
    for name in list(os.environ):
        if name.startswith("APP_") or name in {"HOST", "PORT", "DATABASE_URL", "REDIS_URL"}:
            monkeypatch.delenv(name)
    directory = tmp_path / "parent" / "checkout"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("APP_SECRET_KEY", SECRET)
    return directory


@pytest.mark.parametrize("key", ["", "APP_JOBS_ARTIFACT_S3_KEY_ID", "APP_JOBS_ARTIFACT_S3_KEY_ID_FILE"])
def test_what_a_shell_has_for_other_servers_is_taken_out_of_the_process(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    foreign = {
        "PGPORT": "1",
        "PGSSLROOTCERT": "/x",
        "PGSERVICEFILE": "/x",
        "AWS_SESSION_TOKEN": "x",
        "AWS_PROFILE": "x",
    }
    others = {"SSL_CERT_FILE": "/x", "HTTPS_PROXY": "http://x", "REDIS_HOST": "x"}
    own_key = {key: str(working_directory / "key")} if key else {}
    (working_directory / "key").write_text("AKIA\n")
    for name, value in (foreign | others | own_key).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.jobs.artifact_s3_key_id is not None) == bool(key)
    left = {name for name in os.environ if name in foreign}
    assert left == (set() if key else {"AWS_SESSION_TOKEN", "AWS_PROFILE"})
    assert others.keys() <= os.environ.keys()


def test_the_dotenv_file_of_the_working_directory_is_read(working_directory: Path) -> None:
    (working_directory / ".env").write_text("PORT=8952\n")
    assert load_settings().port == 8952


def test_no_parent_folder_is_searched_for_a_dotenv_file(working_directory: Path) -> None:
    (working_directory.parent / ".env").write_text("DATABASE_URL=postgresql://another/project\nPORT=8952\n")
    settings = load_settings()
    assert (settings.port, settings.database.url) == (8000, None)


@pytest.mark.parametrize(
    ("in_file", "in_environment", "port"),
    [
        ("APP_PORT=1\n", {"PORT": "2"}, 2),
        ("PORT=1\n", {"APP_PORT": "2"}, 2),
        ("APP_PORT=1\nHOST=::1\n", {}, 1),
        ("APP_PORT=1\n", {"APP_PORT": ""}, 8000),
    ],
)
def test_the_environment_wins_over_the_file_by_whichever_name(
    working_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_file: str,
    in_environment: dict[str, str],
    port: int,
) -> None:
    (working_directory / ".env").write_text(in_file)
    for name, value in in_environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == port


def test_a_secret_of_the_file_gives_way_to_a_secret_file_of_the_environment(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_directory / ".env").write_text("DATABASE_URL=postgresql://file/x\n")
    (working_directory / "url").write_text("postgresql://secret/x\n")
    monkeypatch.setenv("APP_DATABASE_URL_FILE", "url")
    assert load_settings().database.dsn == "postgresql://secret/x"


def test_a_byte_order_mark_is_no_part_of_the_first_name(working_directory: Path) -> None:
    (working_directory / ".env").write_bytes(b"\xef\xbb\xbfPORT=8952\r\n")
    assert load_settings().port == 8952


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_dotenv_file_that_is_not_utf_8(working_directory: Path, encoding: str) -> None:
    path = working_directory / ".env"
    path.write_text("APP_MAIL_SENDER='Müller <mueller@example.com>'\n", encoding=encoding)
    with pytest.raises(SettingsError) as raised:
        process_environ()
    assert raised.value.problems == [f"{path}: is not UTF-8 text; save it as UTF-8"]


@pytest.mark.parametrize("command", ["config", "doctor", "serve", "worker", "migrate up"])
def test_commands_tell_of_an_unreadable_dotenv_file_in_one_message(working_directory: Path, command: str) -> None:
    path = working_directory / ".env"
    path.write_bytes(b"APP_MAIL_SENDER=M\xfcller\n")
    done = subprocess.run(
        [sys.executable, "-m", "app", *command.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"{path}: is not UTF-8 text; save it as UTF-8"
    if command == "doctor":
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.endswith(f"FAIL Settings: {message}\n")
    else:
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr == f"The settings are wrong:\n  {message}\n"
