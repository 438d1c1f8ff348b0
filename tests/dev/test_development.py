"""How one works on Onehop: break points in a terminal, reloads of API and worker, servers that outlive a reload."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import psutil
import pytest

from tests.fixtures.application import free_port
from tests.fixtures.embedded import arguments_of, processes_of
from tests.fixtures.http import http_client
from tests.fixtures.servers import AddCluster
from tests.fixtures.terminal import ROOT, Terminal
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SLOW = 240.0
STOPPING_ROUTE = """

@router.get("/v1/stop", dependencies=[Public])
async def stop_at_break_point() -> Response:
    word = "before"
    breakpoint()
    return json_response({"word": word})
"""


@pytest.fixture
def tree(server_room: Path, add_cluster: AddCluster) -> Path:
    """A copy of the program that a test may change; with its bytecode, so that no process compiles all of it."""
    tree = server_room / "tree"
    for name in ("app", "alembic"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "pyproject.toml", tree)
    add_cluster(tree / "data")
    return tree


@pytest.fixture
def variables(tree: Path) -> Iterator[dict[str, str]]:
    """Nothing set but a data folder, a port, and short times that a debugger must not be subject to."""
    data_dir = tree / "data"
    yield {
        "APP_DATA_DIR": str(data_dir),
        "PORT": str(free_port()),
        "APP_LOOP_MAX_STALL": "1",
        "APP_HTTP_REQUEST_TIMEOUT": "3",
        # A module that is imported from the folder of tests would not be that of the tree.
        "PYTHONPATH": str(tree),
    }
    for process in [*processes_of(data_dir), *_workers(data_dir, "serve"), *_workers(data_dir)]:
        process.kill()


def _workers(data_dir: Path, command: str = "worker") -> list[psutil.Process]:
    """The processes of `python -m app worker` on this data, that which watches for changes included."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("APP_DATA_DIR") == str(data_dir)
            if is_ours and ["app", command] == process.cmdline()[2:4]:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _client(variables: dict[str, str]) -> httpx.AsyncClient:
    return http_client(f"http://127.0.0.1:{variables['PORT']}", timeout=SLOW)


def _add_break_point(tree: Path) -> None:
    with (tree / "app" / "core" / "router.py").open("a", encoding="utf-8") as file:
        file.write(STOPPING_ROUTE)


@pytest.mark.parametrize("options", [(), ("--reload",)], ids=["run", "dev"])
async def test_a_break_point_reads_the_terminal_and_ctrl_c_ends_it(
    tree: Path, variables: dict[str, str], options: tuple[str, ...]
) -> None:
    _add_break_point(tree)
    with Terminal(("dev", *options), variables, tree) as terminal:
        await terminal.shows("Onehop is ready", within=SLOW)
        async with _client(variables) as client:
            stopped = asyncio.create_task(client.get("/v1/stop"))
            await terminal.shows("(Pdb) ")
            # Longer than a loop may stand still, and than a request may take.
            await asyncio.sleep(5)
            terminal.type("p word\n")
            await terminal.shows("'before'")
            await terminal.shows("(Pdb) ")
            terminal.type("c\n")
            answer = await stopped
            assert (answer.status_code, answer.json()) == (200, {"word": "before"})
            # Ctrl-C at the prompt stops everything, and switches on again what readline has switched off.
            stopped = asyncio.create_task(client.get("/v1/stop"))
            await terminal.shows("(Pdb) ")
            terminal.type(chr(3))
            assert await terminal.end(within=SLOW) == 0
            with pytest.raises(httpx.TransportError):
                await stopped
        assert terminal.echoes
    output = terminal.output
    assert "Everything is stopped." in output
    for unwanted in ("BdbQuit", "Traceback", "ended unexpectedly", "the event loop stands still", "API killed"):
        assert unwanted not in output, output
    assert processes_of(tree / "data") == []


async def test_api_and_worker_start_anew_when_a_file_changes(tree: Path, variables: dict[str, str]) -> None:
    data_dir = tree / "data"
    with Terminal(("dev", "--reload"), variables, tree) as terminal:
        await terminal.shows("Onehop is ready", within=SLOW)
        (watcher,) = _workers(data_dir)
        await terminal.shows("jobs.worker_ready", within=SLOW) if "jobs.worker_ready" not in terminal.output else None
        before = _children(watcher)
        handler = tree / "app" / "jobs" / "handlers" / "export_events.py"
        handler.write_text(handler.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
        await eventually(lambda: bool(_children(watcher)) and not _children(watcher) & before, within=SLOW)
        # The new one works, and code that does not even compile ends neither of the two for good.
        await eventually(lambda: terminal.output.count("jobs.worker_ready") == 2, within=SLOW)
        handler.write_text("this is no Python", encoding="utf-8")
        await terminal.shows("SyntaxError", within=SLOW)
        shutil.copy(ROOT / "app" / "jobs" / "handlers" / "export_events.py", handler)
        await eventually(lambda: terminal.output.count("jobs.worker_ready") == 3, within=SLOW)
        assert _workers(data_dir) == [watcher]
        async with _client(variables) as client:
            assert (await client.get("/livez")).status_code == 200
        terminal.type(chr(3))
        assert await terminal.end(within=SLOW) == 0
    assert processes_of(data_dir) == []


def _children(process: psutil.Process) -> set[int]:
    """Those of `multiprocessing`, without its own tracker of resources."""
    return {child.pid for child in process.children() if "spawn_main" in arguments_of(child)}


async def test_servers_outlive_the_reloads_of_uvicorn(tree: Path, variables: dict[str, str]) -> None:
    """`uvicorn --reload`, which is what `fastapi dev` runs, too."""
    data_dir = tree / "data"
    port = variables.pop("PORT")
    options = ("app.main:app", "--reload", "--reload-dir", "app", "--port", port)
    with Terminal(options, variables, tree, module="uvicorn") as terminal:
        await terminal.shows("Onehop is ready", within=SLOW)
        await terminal.shows(f"  Mail   http://127.0.0.1:{port}/dev/mailbox", within=SLOW)
        await terminal.shows("  Log in admin@example.com / ", within=SLOW)
        assert "setup plugin" not in terminal.output
        postmaster = _postmaster(data_dir)
        (worker,) = _workers(data_dir)
        page = tree / "app" / "core" / "pages.py"
        page.write_text(page.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
        await eventually(lambda: bool(_workers(data_dir)) and worker not in _workers(data_dir), within=SLOW)
        assert _postmaster(data_dir) == postmaster
        async with http_client(f"http://127.0.0.1:{port}", timeout=SLOW) as client:
            body = {"email": "ada@example.com", "password": "a very long horse 42"}
            registered = await client.post("/v1/auth/register", json=body)
            claims = jwt.decode(registered.json()["tokens"]["access_token"], options={"verify_signature": False})
            metadata = (await client.get("/.well-known/oauth-authorization-server")).json()
            assert claims["iss"] == metadata["issuer"] == f"http://127.0.0.1:{port}"
            await eventually(lambda: any((data_dir / "mailbox").glob("*.eml")), within=SLOW)
        (mail,) = (data_dir / "mailbox").glob("*.eml")
        assert f"http://127.0.0.1:{port}/verify-email" in mail.read_text(encoding="utf-8").replace("=\n", "")
        assert terminal.output.count("Onehop is ready") == 1
        terminal.type(chr(3))
        await terminal.end(within=SLOW)
    # The keeper does it, once uvicorn's own process is gone.
    await eventually(lambda: processes_of(data_dir) == [], within=SLOW)


def _postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
