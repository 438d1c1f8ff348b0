"""Migrations go up, down and up again, alone and side by side, and always end in the schema on file."""

import asyncio
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from app.dev.embedded import EmbeddedPostgres
from app.kernel.schema import migrations
from tests.fixtures.servers import Connection
from tests.fixtures.shell import Shell

SNAPSHOT = Path(__file__).with_name("schema.sql")
NOISE = r"--|SET |SELECT pg_catalog|\\"
# An extension may serve others in the same database, so it stays when we go.
OURS_ONLY = NOISE + "|CREATE EXTENSION|COMMENT ON EXTENSION"
SCRIPTS = ScriptDirectory.from_config(migrations._config())
# A column that comes back when one of these is taken back can only be the last of its table.
PUTS_A_COLUMN_LAST = {"0018_no_parents"}
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


async def dump(postgres: EmbeddedPostgres, url: str, *, noise: str = NOISE) -> str:
    """The schema as `pg_dump` prints it, without what differs from one dump to the next."""
    process = await asyncio.create_subprocess_exec(
        *(postgres._programs / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", url),
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    lines = [line for line in output.decode().splitlines() if not re.match(noise, line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


async def test_schema_on_file_is_what_the_migrations_make(postgres: EmbeddedPostgres, database_url: str) -> None:
    present = await dump(postgres, database_url)
    if os.environ.get("WRITE_SCHEMA"):
        await asyncio.to_thread(SNAPSHOT.write_text, present)
    recorded = await asyncio.to_thread(SNAPSHOT.read_text)
    difference = "\n".join(difflib.unified_diff(recorded.splitlines(), present.splitlines(), "file", "database"))
    assert not difference, f"run this test with WRITE_SCHEMA=1 to write the file anew\n{difference}"


async def test_up_down_up_leaves_no_trace(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    await migrations.upgrade(empty_database_url)
    before = await dump(postgres, empty_database_url)
    await migrations.downgrade(empty_database_url, "base")
    bare = await dump(postgres, empty_database_url, noise=OURS_ONLY)
    await migrations.upgrade(empty_database_url)
    assert await dump(postgres, empty_database_url) == before
    objects = [line for line in bare.splitlines() if line.startswith("CREATE ")]
    assert objects == ["CREATE TABLE public.alembic_version ("]


async def test_each_step_can_be_taken_back(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    for revision in REVISIONS:
        before = await dump(postgres, empty_database_url, noise=OURS_ONLY)
        await migrations.upgrade(empty_database_url, revision)
        if revision != REVISIONS[0]:
            await migrations.downgrade(empty_database_url, "-1")
            after = await dump(postgres, empty_database_url, noise=OURS_ONLY)
            if revision in PUTS_A_COLUMN_LAST:
                before, after = _in_any_order(before), _in_any_order(after)
            assert after == before
            await migrations.upgrade(empty_database_url, revision)
    assert await migrations.status(empty_database_url) == (REVISIONS[-1], REVISIONS[-1])


def _in_any_order(schema: str) -> str:
    """With the columns of each table sorted; no statement relies on their order."""

    def sort(table: re.Match[str]) -> str:
        columns = sorted(line.strip().removesuffix(",") for line in table[2].splitlines())
        return f"{table[1]}{columns}"

    return re.sub(r"^(CREATE TABLE \S+ \()$(.*?)^\)", sort, schema, flags=re.MULTILINE | re.DOTALL)


async def test_status_of_an_empty_database(empty_database_url: str) -> None:
    assert await migrations.status(empty_database_url) == (None, REVISIONS[-1])


async def test_a_revision_that_is_not_there_is_named(empty_database_url: str) -> None:
    with pytest.raises(migrations.NoSuchRevision, match="no_such_revision"):
        await migrations.upgrade(empty_database_url, "no_such_revision")
    with pytest.raises(migrations.NoSuchRevision, match="-1"):
        await migrations.downgrade(empty_database_url, "-1")


async def test_runners_wait_for_each_other(empty_database_url: str) -> None:
    await asyncio.gather(*(migrations.upgrade(empty_database_url) for _ in range(4)))
    assert await migrations.status(empty_database_url) == (REVISIONS[-1], REVISIONS[-1])


async def test_gives_up_behind_a_lock(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "TIMEOUTS", migrations.TIMEOUTS.replace("4s", "100ms"))
    async with connection.transaction():
        await connection.fetch("SELECT id FROM users.users")
        with pytest.raises(Exception, match="lock timeout"):
            await migrations.downgrade(database_url, "base")
    # What came before the blocked one is done, each in a transaction of its own.
    assert await migrations.status(database_url) == ("0002_users", REVISIONS[-1])


async def test_the_clone_may_be_in_any_folder(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "100% of #1"
    folder.symlink_to(migrations.ROOT)
    monkeypatch.setattr(migrations, "ROOT", folder)
    await migrations.upgrade(database_url)
    assert await migrations.status(database_url) == (REVISIONS[-1], REVISIONS[-1])


def test_the_configuration_is_read_in_any_locale() -> None:
    """Alembic takes the locale's encoding, which by LC_ALL=C is ASCII."""
    assert (migrations.ROOT / "alembic.ini").read_bytes().isascii()


def test_file_names_and_order() -> None:
    files = sorted((migrations.ROOT / "alembic" / "versions").glob("*.py"))
    assert [file.stem[11:] for file in files] == REVISIONS
    assert all(re.fullmatch(r"\d{4}_\d{2}_\d{2}_\d{4}_\w+", file.stem) for file in files)
    assert len(SCRIPTS.get_heads()) == 1


def test_command_line_prints_sql_without_a_database(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("alembic")
    command: list[str | Path] = [program, "-c", migrations.ROOT / "alembic.ini", "upgrade", "head", "--sql"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("BEGIN;\n\nSET lock_timeout = '4s'; SET statement_timeout = '60s';")
    assert printed.count("CREATE TABLE users.events (") == 1
    assert printed.rstrip().endswith("COMMIT;")


async def test_an_operator_goes_down_and_up(shell: Shell) -> None:
    assert (await shell("migrate", "status"))[0] == 0
    assert (await shell("migrate", "down", "-1"))[0] == 0
    assert (await shell("migrate", "status"))[0] == 1
    assert (await shell("migrate", "down", "base"))[0] == 0
    assert "database: empty" in (await shell("migrate", "status"))[1]
    assert (await shell("migrate", "up"))[0] == 0
    assert (await shell("migrate", "status"))[0] == 0
