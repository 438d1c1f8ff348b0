"""The clients that others' generators make of the document, unedited: they compile, and the quickstart passes.

`make install-clients` installs the generators; the ones of npm need Node.js, openapi-generator needs Java.
"""

import asyncio
import os
import shutil
from pathlib import Path

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
    if shutil.which("java") is None:
        pytest.skip("Java is not on the PATH, which openapi-generator runs on")
    # Neither tests nor pages, of which there are three for each model.
    left_out = "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false"
    await run(
        *(python_tool("openapi-generator-cli"), "generate", "-i", DOCUMENT, "-g", generator, "-o", output),
        *("--global-property", left_out),
        cwd=output.parent,
        JAVA_OPTS="-XX:TieredStopAtLevel=1",
    )


async def compile_typescript(folder: Path, story: str) -> None:
    shutil.copyfile(HERE / "stories" / story, folder / "story.ts")
    shutil.copyfile(HERE / "tsconfig.json", folder / "tsconfig.json")
    (folder / "node_modules").symlink_to(NODE_MODULES)
    await run(node_tool("tsc"), "-p", folder, cwd=folder)


async def run_typescript(folder: Path, url: str) -> None:
    output = await run("node", folder / "made" / "story.js", cwd=folder, BASE_URL=url)
    assert "The story has passed." in output


@pytest.fixture
async def url(live_server: LiveServer, live_worker: LiveWorker) -> str:
    """Of a running program with a worker."""
    url, _ = await asyncio.gather(live_server(), live_worker())
    return url


async def test_openapi_python_client(url: str, tmp_path: Path) -> None:
    package = tmp_path / "onehop_client"
    generator = python_tool("openapi-python-client")
    await run(generator, "generate", "--path", DOCUMENT, "--output-path", package, "--meta", "none", cwd=tmp_path)
    shutil.copyfile(HERE / "stories" / "openapi_python_client.py", tmp_path / "story.py")
    await run(python_tool("mypy"), "--config-file", HERE / "mypy.ini", "story.py", "onehop_client", cwd=tmp_path)
    await run(python_tool("python"), "story.py", url, cwd=tmp_path)


async def test_openapi_generator_in_python(url: str, tmp_path: Path) -> None:
    await openapi_generator("python", tmp_path / "made")
    shutil.copyfile(HERE / "stories" / "openapi_generator.py", tmp_path / "made" / "story.py")
    await run(python_tool("python"), "story.py", url, cwd=tmp_path / "made")


async def test_openapi_typescript(url: str, tmp_path: Path) -> None:
    await run(node_tool("openapi-typescript"), DOCUMENT, "-o", tmp_path / "schema.d.ts", cwd=tmp_path)
    await compile_typescript(tmp_path, "openapi_fetch.ts")
    await run_typescript(tmp_path, url)


async def test_hey_api(url: str, tmp_path: Path) -> None:
    generator = node_tool("openapi-ts")
    await run(generator, "-i", DOCUMENT, "-o", tmp_path / "client", "-c", "@hey-api/client-fetch", cwd=HERE)
    await compile_typescript(tmp_path, "hey_api.ts")
    await run_typescript(tmp_path, url)


async def test_openapi_generator_in_typescript(url: str, tmp_path: Path) -> None:
    node_tool("tsc")
    await openapi_generator("typescript-fetch", tmp_path / "client")
    await compile_typescript(tmp_path, "typescript_fetch.ts")
    await run_typescript(tmp_path, url)


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


async def test_promtool_finds_nothing(live_server: LiveServer, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH; it comes with Prometheus")
    async with httpx.AsyncClient(base_url=await live_server(), timeout=scaled(30)) as client:
        metrics = await client.get("/metrics")
    (tmp_path / "metrics").write_bytes(metrics.content)
    command = 'exec promtool check metrics < "$1"'
    assert (await run("sh", "-c", command, "sh", tmp_path / "metrics", cwd=tmp_path)).strip() == ""
