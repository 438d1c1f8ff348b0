"""The clients that others' generators make of the document, unedited: they compile, and the quickstart passes.

`make install-clients` installs the generators; the ones of npm need Node.js, openapi-generator needs Java.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.application import ROOT, LiveServer, LiveWorker
from tests.fixtures.waiting import scaled

HERE = Path(__file__).parent
DOCUMENT = ROOT / "docs" / "openapi.json"
PROGRAMS = ROOT / ".venv" / "clients" / "bin"
NODE_MODULES = HERE / "node_modules"

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(scaled(900))]


async def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a program prints; fails with it if the program does."""
    environment = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"} | variables
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace")
    assert process.returncode == 0, output
    return output


def node_tool(name: str) -> Path:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not on the PATH; with it, `make install-clients` installs this generator")
    program = NODE_MODULES / ".bin" / name
    assert program.exists(), "run `make install-clients`"
    return program


def python_tool(name: str) -> Path:
    program = PROGRAMS / name
    assert program.exists(), "run `make install-clients`"
    return program


async def openapi_generator(generator: str, output: Path) -> None:
    # Neither tests nor pages, of which there are three for each model.
    left_out = "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false"
    await run(
        *(python_tool("openapi-generator-cli"), "generate", "-i", DOCUMENT, "-g", generator, "-o", output),
        *("--global-property", left_out),
        cwd=output.parent,
        JAVA_OPTS="-XX:TieredStopAtLevel=1",
    )


async def run_python(folder: Path, story: str, url: str) -> None:
    shutil.copyfile(HERE / "stories" / story, folder / "story.py")
    assert "The story has passed." in await run(python_tool("python"), "story.py", url, cwd=folder)


def _lay_out(root: Path, stories: Iterable[str]) -> None:
    (root / "node_modules").symlink_to(NODE_MODULES)
    shutil.copyfile(HERE / "tsconfig.json", root / "tsconfig.json")
    for name in stories:
        (root / name).mkdir()
        shutil.copyfile(HERE / "stories" / f"{name}.ts", root / name / "story.ts")


async def run_typescript(
    root: Path, generators: Mapping[str, Callable[[Path], Coroutine[Any, Any, None]]], url: str
) -> None:
    """Generate each client into a folder named like its story, compile all of them at once, and run the stories."""
    _lay_out(root, generators)
    async with asyncio.TaskGroup() as group:
        for name, generate in generators.items():
            group.create_task(generate(root / name))
    # Reading the library's declarations takes most of the time, so one compilation serves all clients. Its compiler is
    # the native one, which takes a seventh of the time of the one that the generators import.
    await run("node", NODE_MODULES / "typescript7" / "bin" / "tsc", "-p", root, cwd=root)
    async with asyncio.TaskGroup() as group:
        for name in generators:
            group.create_task(_run_story(root / "made" / name / "story.js", url))


async def _run_story(story: Path, url: str) -> None:
    assert "The story has passed." in await run("node", story, cwd=story.parent, BASE_URL=url)


@pytest.fixture
async def url(live_server: LiveServer, live_worker: LiveWorker) -> str:
    """Of a running program with a worker."""
    url, _ = await asyncio.gather(live_server(), live_worker())
    return url


async def check_types(folder: Path, configuration: Path, *targets: str) -> None:
    command = (python_tool("mypy"), "--config-file", configuration, "--cache-dir", os.devnull)
    await run(*command, *targets, cwd=folder)


async def _openapi_python_client(folder: Path, url: str) -> None:
    generator = python_tool("openapi-python-client")
    output = folder / "onehop_client"
    await run(generator, "generate", "--path", DOCUMENT, "--output-path", output, "--meta", "none", cwd=folder)
    await run_python(folder, "openapi_python_client.py", url)
    await check_types(folder, HERE / "mypy.ini", "story.py", "onehop_client")


async def _openapi_generator_in_python(folder: Path, url: str) -> None:
    await openapi_generator("python", folder)
    await run_python(folder, "openapi_generator.py", url)
    # Its own configuration, which says what is not strict yet in all clients that it makes.
    await check_types(folder, folder / "pyproject.toml", "story.py", "openapi_client")


async def test_clients_in_python(tmp_path: Path, url: str) -> None:
    """openapi-python-client and openapi-generator, whose clients mypy checks."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_openapi_python_client(tmp_path, url))
        if shutil.which("java") is not None:
            group.create_task(_openapi_generator_in_python(tmp_path / "openapi_generator", url))


async def _openapi_typescript(folder: Path) -> None:
    await run(node_tool("openapi-typescript"), DOCUMENT, "-o", folder / "schema.d.ts", cwd=folder)


async def _hey_api(folder: Path) -> None:
    generator = node_tool("openapi-ts")
    await run(generator, "-i", DOCUMENT, "-o", folder / "client", "-c", "@hey-api/client-fetch", cwd=HERE)


async def _orval(folder: Path) -> None:
    configuration = HERE / "stories" / "orval.config.mjs"
    target = folder / "client.ts"
    await run(node_tool("orval"), "--config", configuration, cwd=folder, DOCUMENT=str(DOCUMENT), TARGET=str(target))


async def _swagger_typescript_api(folder: Path) -> None:
    generator = node_tool("swagger-typescript-api")
    await run(generator, "generate", "--path", DOCUMENT, "--output", folder / "client", "--silent", cwd=folder)


async def _typescript_fetch(folder: Path) -> None:
    await openapi_generator("typescript-fetch", folder / "client")


async def test_clients_in_typescript(tmp_path: Path, url: str) -> None:
    """openapi-typescript with openapi-fetch, hey-api, orval, swagger-typescript-api, and openapi-generator."""
    node_tool("tsc")
    generators = {
        "openapi_fetch": _openapi_typescript,
        "hey_api": _hey_api,
        "orval": _orval,
        "swagger_typescript_api": _swagger_typescript_api,
    }
    if shutil.which("java") is not None:
        generators["typescript_fetch"] = _typescript_fetch
    await run_typescript(tmp_path, generators, url)


async def test_datamodel_code_generator(tmp_path: Path) -> None:
    await run(
        *(python_tool("datamodel-codegen"), "--input", DOCUMENT, "--input-file-type", "openapi"),
        *("--output", tmp_path / "models.py", "--output-model-type", "pydantic_v2.BaseModel"),
        cwd=tmp_path,
    )
    shutil.copyfile(HERE / "stories" / "datamodel_code_generator.py", tmp_path / "story.py")
    await run(python_tool("python"), "story.py", DOCUMENT, cwd=tmp_path)


async def test_redocly_finds_nothing(tmp_path: Path) -> None:
    await run(node_tool("redocly"), "lint", DOCUMENT, "--config", HERE / "redocly.yaml", cwd=tmp_path, CI="true")


async def test_promtool_finds_nothing(client: httpx.AsyncClient, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH; it comes with Prometheus")
    metrics = await client.get("/metrics")
    assert metrics.status_code == 200
    (tmp_path / "metrics").write_bytes(metrics.content)
    command = 'exec promtool check metrics < "$1"'
    assert (await run("sh", "-c", command, "sh", tmp_path / "metrics", cwd=tmp_path)).strip() == ""
