"""What the commands say, above all of what is wrong, as processes of their own."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from app.cli.doctor import _postgres
from app.cli.environment import explanation
from app.kernel.database import DatabaseUnavailable
from app.kernel.database.failures import translate
from app.kernel.errors import NotFound
from app.kernel.schema.revision import newest_revision
from app.settings import SettingsError, load_settings
from tests.cli.programs import ROOT, processes, run


def test_a_taken_port_is_told_before_anything_starts(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):
        for command in ("dev", "serve"):
            done = run(environment, command)
            assert done.returncode == 1
            told = f"Port {environment['PORT']} on 127.0.0.1 cannot be used: Address already in use"
            assert done.stderr.startswith(told)
    assert not (Path(environment["APP_DATA_DIR"]) / "postgres").exists()


def test_a_database_that_does_not_answer_is_told(environment: dict[str, str]) -> None:
    done = run({**environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}, "dev")
    assert done.returncode == 1
    assert "PostgreSQL cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes(environment) == []


def test_what_is_wrong_is_told_in_a_line(environment: dict[str, str]) -> None:
    done = run({**environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}, "migrate", "status")
    assert done.returncode == 1
    assert done.stderr.startswith("PostgreSQL cannot be reached: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            asyncpg.UndefinedTableError("x"),
            "PostgreSQL refuses: x. The schema is not the newest: python -m app migrate up",
        ),
        (
            asyncpg.InvalidPasswordError("not you"),
            "PostgreSQL refuses: not you. Check the user and the password in DATABASE_URL, and pg_hba.conf.",
        ),
        (
            asyncpg.InsufficientPrivilegeError("not allowed"),
            (
                "PostgreSQL refuses: not allowed. "
                "The role in DATABASE_URL lacks a privilege: grant it, or make the role the owner of the tables."
            ),
        ),
        (asyncpg.LockNotAvailableError("held"), "PostgreSQL was too busy, run it again: held"),
        (NotFound("Job not found"), "Job not found"),
        (asyncpg.PostgresSyntaxError("ours"), None),
        (KeyError("ours"), None),
    ],
)
def test_errors_of_the_program_alone_keep_their_traceback(error: Exception, told: str | None) -> None:
    assert explanation(error) == told


def test_a_full_disk_is_named_wherever_it_is_met() -> None:
    """By our own files, and by PostgreSQL's, whose error comes as one of ours."""
    told = explanation(OSError(errno.ENOSPC, "No space left on device", "/data/run"))
    assert told is not None
    assert told.startswith("/data/run cannot be written (No space left on device); make room on the disk")
    with pytest.raises(DatabaseUnavailable) as raised:
        try:
            raise asyncpg.DiskFullError("could not extend file")
        except asyncpg.PostgresError as error:
            raise translate(error) from error
    assert explanation(raised.value) == (
        "PostgreSQL refuses: could not extend file. The disk of PostgreSQL is full: make room."
    )


def test_a_full_disk_is_no_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(SettingsError) as raised:
        load_settings({"APP_DATA_DIR": str(tmp_path / "data")})
    (problem,) = raised.value.problems
    assert problem.endswith(
        "(No space left on device); make room on the disk, or name a folder on another one by APP_DATA_DIR"
    )


def test_a_host_that_is_not_ours(environment: dict[str, str]) -> None:
    done = run({**environment, "HOST": "203.0.113.1"}, "dev")
    assert done.returncode == 1
    assert "cannot be used" in done.stderr


def test_wrong_settings_are_named_all_at_once(environment: dict[str, str]) -> None:
    done = run({**environment, "PORT": "no", "APP_WORKERS": "-1", "APP_NO_SUCH": "1"}, "dev")
    assert done.returncode == 78
    for name in ("PORT", "APP_WORKERS", "APP_NO_SUCH"):
        assert name in done.stderr
    # By the name that was given.
    assert "APP_PORT" not in done.stderr
    assert "Traceback" not in done.stderr


def test_dev_and_demo_data_are_not_for_production(environment: dict[str, str]) -> None:
    production = {
        **environment,
        "APP_ENV": "production",
        "APP_SECRET_KEY": "v7Qk2mZ9xT4bN8rW1yL6cJ3hD5fG0sPa-uE",
        "APP_PUBLIC_URL": "https://onehop.example",
        "DATABASE_URL": "postgresql://onehop:eGf7WmQ2kz@127.0.0.1:1/onehop",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "APP_HTTP_TRUSTED_PROXIES": "none",
    }
    for command in ("dev", "seed"):
        done = run(production, command)
        assert done.returncode == 78, done.stderr
        assert "production" in done.stderr


def test_settings_are_shown_without_secrets(environment: dict[str, str]) -> None:
    secret = "b3f1c9d2e4a5968778695a4b3c2d1e0f"
    database = "postgresql://app:hidden-word@db.example/onehop"
    done = run({**environment, "APP_SECRET_KEY": secret, "DATABASE_URL": database}, "config", "--changed")
    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line for line in lines if line.startswith("APP_")] == [
        "APP_SECRET_KEY=********",
        f"APP_PORT={environment['PORT']}",
        f"APP_DATA_DIR={environment['APP_DATA_DIR']}",
        "APP_DATABASE_URL=postgresql://********@db.example/onehop",
    ]
    assert "Default: 8000. From: PORT in the environment." in lines
    assert secret not in done.stdout
    assert "hidden-word" not in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_doctor_says_what_is_wrong(environment: dict[str, str]) -> None:
    sick = run(environment, "doctor")
    assert sick.returncode == 1
    assert "FAIL Schema: empty" in sick.stdout
    assert "ok   PostgreSQL: 18." in sick.stdout
    assert "ok   Redis: valkey 9." in sick.stdout
    assert f"ok   psql: psql -h {environment['APP_DATA_DIR']}/run/postgres -p 5432 -U postgres onehop" in sick.stdout
    assert run(environment, "migrate", "up").returncode == 0
    well = run(environment, "doctor")
    assert well.returncode == 0
    assert {line[:4] for line in well.stdout.splitlines()} == {"ok  "}
    assert f"ok   Port: {environment['PORT']} is free\n" in well.stdout
    assert "ok   Files: can be written and deleted\n" in well.stdout
    assert "ok   Mail: is kept in the development mailbox\n" in well.stdout
    assert re.search("ok   Fonts: for [0-9]+ scripts, none for Gujarati, ", well.stdout)
    assert run(environment, "seed").returncode == 0


async def test_doctor_names_a_schema_of_a_newer_release(database_url: str) -> None:
    """That of a deployment under way, with which this release works, too."""
    settings = load_settings({"APP_SECRET_KEY": "k" * 32, "DATABASE_URL": database_url})

    async def schema() -> tuple[str, str]:
        found = {finding.subject: (finding.verdict, finding.text) async for finding in _postgres(settings)}
        assert found["Secret"][0] == "ok"
        return found["Schema"]

    assert await schema() == ("ok", f"{newest_revision()} is the newest")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE alembic_version SET version_num = '9999_of_a_release_to_come'")
    finally:
        await connection.close()
    text = f"9999_of_a_release_to_come is of a newer release than this one, which knows {newest_revision()}"
    assert await schema() == ("warn", text)


@pytest.mark.slow
def test_doctor_finds_servers_that_are_down(environment: dict[str, str]) -> None:
    away = {
        "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "APP_MAIL_SMTP_URL": "smtp://127.0.0.1:1",
    }
    done = run({**environment, **away}, "doctor")
    assert done.returncode == 1
    assert "FAIL Mail: " in done.stdout
    assert "FAIL PostgreSQL: not reachable" in done.stdout
    assert "warn Redis: not reachable" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_finds_a_port_that_something_else_has(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):
        done = run(environment, "doctor")
    assert done.returncode == 1
    assert f"FAIL Port: Port {environment['PORT']} on 127.0.0.1 cannot be used: Address already in use" in done.stdout
    foreign = run({**environment, "HOST": "203.0.113.1"}, "doctor")
    assert foreign.returncode == 1
    assert "FAIL Port: Port" in foreign.stdout


def test_doctor_finds_a_folder_that_it_cannot_write_to(environment: dict[str, str], tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    done = run({**environment, "APP_DATA_DIR": str(in_the_way), "APP_SECRET_KEY": "x" * 40}, "doctor")
    assert done.returncode == 1
    assert f"FAIL Data folder: {in_the_way} is not a writable folder" in done.stdout


@pytest.mark.slow
def test_doctor_finds_wrong_settings(environment: dict[str, str]) -> None:
    done = run({**environment, "APP_WORKERS": "-1"}, "doctor")
    assert done.returncode == 1
    assert "FAIL Settings: APP_WORKERS" in done.stdout


def test_openapi_is_printed(environment: dict[str, str]) -> None:
    done = run(environment, "openapi")
    assert done.returncode == 0, done.stderr
    assert "/v1/overview" in json.loads(done.stdout)["paths"]


def test_help_is_there_at_once(environment: dict[str, str]) -> None:
    program = (
        "import sys, app.cli; print(*sorted({'fastapi', 'sqlalchemy', 'asyncpg', 'uvicorn'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
    text = run(environment, "--help").stdout
    for command in ("dev", "serve", "worker", "migrate", "seed", "doctor", "openapi", "config"):
        assert re.search(rf"\b{command}\b", text)
