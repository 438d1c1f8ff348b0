"""The embedded servers: shared, killed, interrupted, and never on the network."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest
import redis

from app.dev.embedded import (
    THROWAWAY_POSTGRES,
    EmbeddedPostgres,
    EmbeddedServerError,
    EmbeddedValkey,
    Servers,
    servers,
)
from app.dev.embedded.privileges import make_private_dir
from app.dev.embedded.processes import is_running, run_to_end
from app.kernel.database.pools import Hosts
from app.settings import process_environ
from tests.fixtures.embedded import ping, processes_of
from tests.fixtures.servers import AddCluster
from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]

# A user of the servers in a process of its own: says where they are, then waits to be told to leave.
HOLDER = """
import sys
from pathlib import Path
from app.dev.embedded import servers
with servers(Path(sys.argv[1])) as found:
    print(found.database_url, found.redis_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def new_dir(server_room: Path) -> Iterator[Path]:
    """A folder for servers, not there yet; whatever still runs there afterwards is ended."""
    directory = server_room / "data"
    yield directory
    for process in processes_of(directory):
        process.kill()


@pytest.fixture
def data_dir(new_dir: Path, add_cluster: AddCluster) -> Path:
    """The same, with a cluster that no server has run on yet."""
    add_cluster(new_dir)
    return new_dir


def _wait_for(what: str, condition: object, seconds: float = scaled(30)) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def _holder(data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _leave(holder: "subprocess.Popen[str]") -> None:
    holder.communicate(timeout=scaled(20))
    assert holder.returncode == 0


async def _value(dsn: str | None, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_both_servers_answer_and_keep_their_data(new_dir: Path) -> None:
    with servers(new_dir) as first:
        assert await _value(first.database_url, "SHOW server_encoding") == "UTF8"
        assert await _value(first.database_url, "SELECT lower('ÄÖ')") == "äö"
        assert str(await _value(first.database_url, "SHOW server_version")).startswith("18.")
        assert await _value(first.database_url, "SHOW fsync") == "on"
        assert await _value(first.database_url, "SHOW full_page_writes") == "on"
        await _value(first.database_url, "CREATE TABLE kept AS SELECT 7 AS number")
        client = redis.Redis.from_url(first.redis_url or "")
        client.set("kept", "seven")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.close()
    assert processes_of(new_dir) == []

    with servers(new_dir) as second:
        assert second == first
        assert await _value(second.database_url, "SELECT number FROM kept") == 7
        client = redis.Redis.from_url(second.redis_url or "")
        assert client.get("kept") == b"seven"
        client.close()


# A shell that is set up for another server, with a value of each kind that would lead or keep us away from ours.
ANOTHER_SERVER = {
    "PGHOST": "db.example",
    "PGHOSTADDR": "203.0.113.1",
    "PGPORT": "5433",
    "PGUSER": "other",
    "PGPASSWORD": "other",
    "PGPASSFILE": "/nonexistent",
    "PGDATABASE": "other",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nonexistent",
    "PGSSLCERT": "/nonexistent",
    "PGSSLKEY": "/nonexistent",
    "PGSSLCRL": "/nonexistent",
    "PGSSLMINPROTOCOLVERSION": "TLSv0",
    "PGSSLMAXPROTOCOLVERSION": "TLSv0",
    "PGKRBSRVNAME": "other",
    "PGGSSLIB": "other",
    "PGSSLNEGOTIATION": "direct",
    "PGTARGETSESSIONATTRS": "standby",
    "PGSERVICE": "other",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGAPPNAME": "other",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATA": "/nonexistent",
}


async def test_the_variables_of_another_server_do_not_lead_away(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = tmp_path / "services"
    services.write_text("[other]\nhost=db.example\nport=5434\nuser=other\nsslmode=require\n", encoding="ascii")
    for name, value in (ANOTHER_SERVER | {"PGSERVICEFILE": str(services)}).items():
        monkeypatch.setenv(name, value)
    # As every way to start does.
    process_environ()
    with servers(data_dir, valkey=False) as found:
        assert found.database_url is not None
        # The second is as people write it: port, TLS and kind of server are left out.
        for table, url in (("first", found.database_url), ("second", found.database_url.partition("&port=")[0])):
            connection = await Hosts(url).connect(timeout=10)
            try:
                row = await connection.fetchrow(
                    "SELECT current_user::text, current_database()::text, inet_server_port()"
                )
                assert tuple(row) == ("postgres", "onehop", None)
                await connection.execute(f"CREATE TABLE {table} AS SELECT 1 AS number")
            finally:
                await connection.close()


# Relative to the data folder: sockets, lock files, and what holds them.
LOST_FILES = (
    ("run/valkey/valkey.sock",),
    ("run/postgres/.s.PGSQL.5432",),
    ("run/postgres/.s.PGSQL.5432.lock",),
    ("postgres/postmaster.pid",),
    ("run/valkey/valkey.sock", "run/postgres/.s.PGSQL.5432", "postgres/postmaster.pid"),
)


@pytest.mark.parametrize("lost", LOST_FILES)
def test_a_server_that_lost_its_files_is_stopped_all_the_same(data_dir: Path, lost: tuple[str, ...]) -> None:
    with servers(data_dir):
        for name in lost:
            (data_dir / name).unlink()
    assert processes_of(data_dir) == []


@pytest.mark.parametrize("lost", LOST_FILES)
async def test_no_second_server_runs_on_the_same_files(data_dir: Path, lost: tuple[str, ...]) -> None:
    first = EmbeddedValkey(data_dir / "valkey"), EmbeddedPostgres(data_dir / "postgres")
    again = EmbeddedValkey(data_dir / "valkey"), EmbeddedPostgres(data_dir / "postgres")
    try:
        for server in first:
            server.start()
        with redis.Redis.from_url(first[0].url()) as client:
            client.set("kept", "seven")
        await _value(first[1].dsn(), "CREATE TABLE kept AS SELECT 7 AS number")
        for name in lost:
            (data_dir / name).unlink()
        for server in again:
            server.start()
        with redis.Redis.from_url(again[0].url()) as client:
            assert client.get("kept") == b"seven"
            assert client.info("server")["process_id"] == again[0].pid()
        assert await _value(again[1].dsn(), "SELECT number FROM kept") == 7
        assert len(_roots(data_dir)) == 2
    finally:
        for server in again:
            server.stop()
    assert processes_of(data_dir) == []


def _roots(data_dir: Path) -> list[psutil.Process]:
    """The servers without their own processes, of which some come and go."""
    found = processes_of(data_dir)
    roots = []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            if process.parent() not in found:
                roots.append(process)
    return roots


def test_only_the_server_that_is_asked_for_starts(data_dir: Path) -> None:
    with servers(data_dir, valkey=False) as found:
        assert found.redis_url is None
        assert found.database_url is not None
        assert not (data_dir / "valkey").exists()
    with servers(data_dir, postgres=False) as found:
        assert found.database_url is None
        assert ping(found.redis_url)


def test_no_server_listens_on_the_network(data_dir: Path) -> None:
    names, sockets = set(), []
    with servers(data_dir):
        for process in processes_of(data_dir):
            # The session that made the database may just be ending.
            with suppress(psutil.NoSuchProcess):
                names.add(process.name())
                sockets += process.net_connections(kind="inet")
    assert {"postgres", "valkey-server"} <= names
    assert sockets == []


def test_sockets_are_closed_to_other_users(new_dir: Path) -> None:
    with servers(new_dir):
        for name in ("postgres", "valkey"):
            assert stat.S_IMODE((new_dir / "run" / name).stat().st_mode) == 0o700
            assert stat.S_IMODE((new_dir / name).stat().st_mode) == 0o700


def test_the_last_process_to_leave_stops_the_servers(new_dir: Path) -> None:
    first, second = _holder(new_dir), _holder(new_dir)
    assert first.stdout is not None
    assert second.stdout is not None
    addresses = first.stdout.readline().split()
    assert second.stdout.readline().split() == addresses
    _leave(first)
    assert ping(addresses[1])
    _leave(second)
    assert processes_of(new_dir) == []


async def test_a_killed_process_leaves_no_server_behind_and_no_damage(data_dir: Path) -> None:
    holder = _holder(data_dir)
    assert holder.stdout is not None
    database_url = holder.stdout.readline().split()[0]
    await _value(database_url, "CREATE TABLE kept AS SELECT 7 AS number")
    holder.kill()
    holder.communicate()
    _wait_for("the keeper to stop the servers", lambda: processes_of(data_dir) == [])

    with servers(data_dir) as found:
        assert await _value(found.database_url, "SELECT number FROM kept") == 7


async def test_servers_survive_the_kill_of_one_of_two_users(data_dir: Path) -> None:
    holder = _holder(data_dir)
    assert holder.stdout is not None
    holder.stdout.readline()
    with servers(data_dir) as found:
        holder.kill()
        holder.communicate()
        await asyncio.sleep(1.5)
        assert await _value(found.database_url, "SELECT 1") == 1
        assert ping(found.redis_url)


async def test_a_crash_of_the_server_leaves_its_data_intact(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres")
    postgres.start()
    await _value(postgres.dsn(), "CREATE TABLE kept AS SELECT 7 AS number")
    pid = postgres.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    # A killed server takes a moment to end. Its lock file is left behind, and so are its children for a while.
    _wait_for("the server to end", lambda: not is_running(pid))
    postgres.start()
    assert postgres.pid() not in {None, pid}
    assert await _value(postgres.dsn(), "SELECT number FROM kept") == 7
    postgres.stop()


def test_a_lock_file_with_the_number_of_a_stranger_does_not_hinder(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", settings=THROWAWAY_POSTGRES)
    postgres.start()
    postgres.stop()
    lock = data_dir / "postgres" / "postmaster.pid"
    lock.write_text(f"{os.getppid()}\n{data_dir / 'postgres'}\n0\n5432\n\n\n\nready   \n", encoding="ascii")
    assert postgres.pid() is None
    postgres.start()
    assert postgres.pid() is not None
    postgres.stop()


def test_a_running_server_is_adopted(data_dir: Path) -> None:
    started, adopted = (EmbeddedPostgres(data_dir / "postgres", settings=THROWAWAY_POSTGRES) for _ in range(2))
    started.start()
    adopted.start()
    assert adopted.pid() == started.pid()
    adopted.stop()
    assert started.pid() is None
    started.stop()


def test_a_first_start_that_was_interrupted_does_not_hinder_the_next(new_dir: Path) -> None:
    half = new_dir / "postgres.new"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with servers(new_dir, valkey=False) as found:
        assert found.database_url is not None
    assert not half.exists()


def test_a_cluster_of_another_version_is_named(new_dir: Path) -> None:
    (new_dir / "postgres").mkdir(parents=True)
    (new_dir / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedServerError, match="was made by PostgreSQL 12"):
        EmbeddedPostgres(new_dir / "postgres").start()


def test_a_failed_start_leaves_no_server_behind(new_dir: Path) -> None:
    (new_dir / "postgres").mkdir(parents=True)
    (new_dir / "postgres" / "PG_VERSION").write_text("1", encoding="ascii")
    with pytest.raises(EmbeddedServerError, match="was made by PostgreSQL 1,"), servers(new_dir):
        pass
    assert processes_of(new_dir) == []


def test_tools_of_a_server_are_out_of_reach_of_the_terminal() -> None:
    session = int(run_to_end(["/bin/sh", "-c", "ps -o sid= -p $$"], user=None))
    assert session != os.getsid(0)


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        EmbeddedPostgres(data_dir / "postgres", settings={"no_such_setting": "1"}).start()
    with pytest.raises(EmbeddedServerError, match="no-such-setting"):
        EmbeddedValkey(data_dir / "valkey", settings={"no-such-setting": "1"}).start()


@pytest.mark.parametrize("name", ["x" * 100, "with space, comma & Umlaut ä"], ids=["long", "odd"])
async def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    """A socket's path has at most 107 bytes, and addresses give some characters a meaning."""
    data_dir = tmp_path / name / "data"
    try:
        with servers(data_dir) as found:
            assert await _value(found.database_url, "SELECT 1") == 1
            assert ping(found.redis_url)
            assert found.database_url is not None
            socket_dir = Path(parse_qs(urlsplit(found.database_url).query)["host"][0])
            assert not socket_dir.is_relative_to(tmp_path)
            assert stat.S_IMODE(os.stat(socket_dir).st_mode) == 0o700  # noqa: PTH116
    finally:
        for process in processes_of(data_dir):
            process.kill()


def test_a_socket_folder_that_somebody_else_prepared_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    planted = tmp_path / "planted"
    planted.symlink_to(target)
    with pytest.raises(PermissionError, match="belongs to another user"):
        make_private_dir(planted, None)


def test_databases_are_created_once(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", settings=THROWAWAY_POSTGRES)
    postgres.start()
    postgres.create_database('it\'s "one"')
    postgres.create_database('it\'s "one"')
    postgres.stop()


def test_addresses_are_announced_before_anything_starts(new_dir: Path) -> None:
    announced: list[tuple[Servers, bool]] = []

    def note(found: Servers) -> None:
        announced.append((found, bool(processes_of(new_dir)) or (new_dir / "postgres").exists()))

    with servers(new_dir, announce=note) as found:
        assert announced == [(found, False)]
        assert ping(found.redis_url)


def test_addresses_are_plain_values() -> None:
    assert Servers("a", "b") == Servers("a", "b")


async def test_the_server_of_the_suite_is_of_the_installation_that_was_chosen(postgres: EmbeddedPostgres) -> None:
    programs = Path(os.environ.get("TEST_POSTGRES_BIN") or postgres._programs)
    printed = await asyncio.to_thread(run_to_end, [programs / "postgres", "--version"], user=None)
    assert printed == f"postgres (PostgreSQL) {await _value(postgres.dsn(), 'SHOW server_version')}\n"
    assert await _value(postgres.dsn(), "SELECT lower('ÄÖ')") == "äö"
    assert await _value(postgres.dsn(), "SELECT 'Z' < 'a'") is True


@pytest.mark.parametrize(
    ("printed", "major"),
    [("18.6", 18), ("15.14 (Debian 15.14-0+deb12u1)", 15), ("19beta1", 19), ("19devel", 19)],
)
def test_versions_as_installations_print_them(tmp_path: Path, printed: str, major: int) -> None:
    for program in (tmp_path / "postgres", tmp_path / "initdb"):
        program.write_text(f"#!/bin/sh\necho '{program.name} (PostgreSQL) {printed}'\n")
        program.chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedServerError, match=f"made by PostgreSQL 14, but {major}"):
        EmbeddedPostgres(tmp_path / "data", programs=tmp_path).start()
