"""Installing from an index of our own: what is in `.venv` depends on the lock alone.

Every installation here runs without HOME, with umask 077, in the C locale, and in a folder with a space and an umlaut
in its name. A proxy that does not answer makes it fail if it asks another index than that of pip's configuration.
"""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fixtures.package_index import BACKEND, REQUIREMENTS, UV, Index, Project, served_index
from tests.fixtures.waiting import scaled

pytestmark = pytest.mark.slow


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with served_index(tmp_path / "index") as served:
        yield served


@pytest.fixture
def installer() -> str:
    return "uv"


@pytest.fixture
def project(tmp_path: Path, index: Index, installer: str) -> Project:
    pip_conf = tmp_path / "pip.conf"
    pip_conf.write_text(f"[global]\nindex-url = {index.url}\n", encoding="utf-8")
    made = Project(tmp_path / "a földer", pip_conf)
    if installer == "uv":
        assert UV is not None
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "uv").symlink_to(UV)
        made.environment["PATH"] += f"{os.pathsep}{tmp_path / 'bin'}"
        made.lock("uv", index.add_wheel("uv", "1.0", script=f'#!/bin/sh\nexec "{UV}" "$@"\n'))
    else:
        made.lock("uv", index.add_wheel("uv", "1.0", platform="win_amd64"))
    return made


def expect(done: "subprocess.CompletedProcess[str]", installer: str, code: int = 0) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert ("pip does" in done.stdout) == (installer == "pip"), done.stdout


@pytest.mark.parametrize(("installer", "listed"), [("uv", "part[extra]"), ("pip", "part")])
def test_newer_releases_on_the_index_change_nothing(
    project: Project, index: Index, installer: str, listed: str
) -> None:
    pins = [
        index.add_wheel("tool", "1.0", "part[extra]>=1.0"),
        index.add_wheel("part", "1.0", "more; extra == 'extra'").replace("part", listed),
        index.add_wheel("more", "1.0"),
    ]
    project.lock("run", *pins)
    expect(project.install(), installer)
    before = project.files()
    assert project.modules() == ["more", "part", "tool"]

    index.add_wheel("part", "2.0", "more; extra == 'extra'")
    index.add_wheel("more", "2.0")
    for folder in (project.venv, Path(project.environment["XDG_CACHE_HOME"])):
        shutil.rmtree(folder, ignore_errors=True)
    expect(project.install(), installer)
    assert project.files() == before


def test_a_lock_that_lacks_a_package_is_refused(project: Project, index: Index) -> None:
    project.lock("run", index.add_wheel("tool", "1.0", "part"))
    index.add_wheel("part", "1.0")
    done = project.install()
    assert done.returncode == 1
    assert "requirements/run.txt is not complete" in done.stdout
    assert project.modules() == ["tool"]
    assert not (project.venv / "run.lock").exists()


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_what_is_left_out_on_purpose_is_not_missed(project: Project, index: Index, installer: str) -> None:
    project.lock(
        "run", index.add_wheel("font", "1.0", "justmytype>=0.3.0"), index.add_wheel("other", "1.0", "rinohtype")
    )
    expect(project.install(), installer)
    assert project.modules() == ["font", "other"]


def test_a_user_without_a_writable_cache_installs_without_one(
    project: Project, index: Index, installer: str, tmp_path: Path
) -> None:
    project.lock("run", index.add_wheel("tool", "1.0"))
    (tmp_path / "file").touch()
    project.environment["XDG_CACHE_HOME"] = str(tmp_path / "file" / "cache")
    expect(project.install(), installer)
    assert project.modules() == ["tool"]


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_package_that_has_left_the_lock_is_removed(project: Project, index: Index, installer: str) -> None:
    kept = index.add_wheel("kept", "1.0")
    project.lock("run", kept, index.add_wheel("gone", "1.0"))
    expect(project.install(), installer)
    assert project.modules() == ["gone", "kept"]
    project.lock("run", kept)
    expect(project.install(), installer)
    assert project.modules() == ["kept"]


def test_a_changed_file_is_not_installed(project: Project, index: Index) -> None:
    pin = index.add_wheel("tool", "1.0")
    project.lock("run", f"{pin[:-2]}{'0' if pin[-2] != '0' else '1'}\n")
    done = project.install()
    assert done.returncode == 1
    assert "hash" in done.stdout.lower()
    assert project.modules() == []


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_package_without_a_wheel_is_built_by_what_is_locked(project: Project, index: Index, installer: str) -> None:
    project.lock("build", index.add_wheel("maker", "1.0", module=BACKEND.format(version="1.0")))
    index.add_wheel("maker", "2.0", module=BACKEND.format(version="2.0"))
    source = index.add_source()
    project.lock("test", source)
    expect(project.install("test"), installer)
    assert project.modules() == ["built"]
    (module,) = project.venv.glob("lib/python*/site-packages/built.py")
    assert module.read_text(encoding="utf-8") == "BACKEND = '1.0'"

    # Nothing is built on a machine that only runs Onehop.
    shutil.rmtree(project.venv)
    project.lock("run", source)
    assert project.install("run").returncode == 1
    assert project.modules() == []


def test_an_interrupted_installation_starts_again_with_an_empty_environment(
    project: Project, index: Index, installer: str
) -> None:
    project.lock("run", index.add_wheel("tool", "1.0"))
    expect(project.install(), installer)
    whole = project.files()
    (packages,) = project.venv.glob("lib/python*/site-packages")
    (packages / "half.py").touch()
    (packages / "tool.py").unlink()
    (project.venv / "incomplete").touch()
    expect(project.install(), installer)
    assert project.files() == whole


@pytest.fixture
def slow_uv(project: Project, index: Index, tmp_path: Path) -> Path:
    """The uv of `.venv` makes the file `installing` when it is to install, and waits for the file returned."""
    script = """#!/bin/sh
if [ "$2" = install ]; then
    touch "{folder}/installing"
    while [ ! -e "{folder}/go" ]; do sleep 0.05; done
fi
exec "{uv}" "$@"
"""
    shutil.rmtree(index.folder / "simple" / "uv")
    project.lock("uv", index.add_wheel("uv", "1.0", script=script.format(folder=tmp_path, uv=UV)))
    return tmp_path / "go"


def _start(project: Project) -> "subprocess.Popen[str]":
    """In a group of its own, which a Ctrl-C reaches as a whole."""
    base: str = sys._base_executable  # type: ignore[attr-defined]
    return subprocess.Popen(
        [base, project.folder / "requirements" / "install.py", "run"],
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A suite in the background of a shell is deaf to Ctrl-C, and so would be what it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it takes no lock
    )


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + scaled(60)
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_leaves_an_environment_that_the_next_installation_makes_anew(
    project: Project, index: Index, slow_uv: Path, tmp_path: Path
) -> None:
    project.lock("run", index.add_wheel("tool", "1.0"))
    interrupted = _start(project)
    _wait_for(tmp_path / "installing")
    os.killpg(interrupted.pid, signal.SIGINT)
    output, _ = interrupted.communicate(timeout=scaled(30))
    assert (interrupted.returncode, "Traceback" in output) == (130, False)
    with pytest.raises(ProcessLookupError):
        os.killpg(interrupted.pid, 0)
    slow_uv.touch()
    expect(project.install(), "uv")
    assert project.modules() == ["tool"]


def test_of_two_installations_at_a_time_the_second_finds_it_done(
    project: Project, index: Index, slow_uv: Path, tmp_path: Path
) -> None:
    project.lock("run", index.add_wheel("tool", "1.0"))
    first = _start(project)
    _wait_for(tmp_path / "installing")
    (tmp_path / "installing").unlink()
    second = _start(project)
    # It has said nothing and begun nothing while the first one is at work.
    time.sleep(1)
    assert second.poll() is None
    slow_uv.touch()
    outputs = [process.communicate(timeout=scaled(60))[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert ("Installed" in outputs[0], outputs[1]) == (True, "")
    assert not (tmp_path / "installing").exists()
    assert project.modules() == ["tool"]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        (0o777, {"XDG_CACHE_HOME": "{}"}, None),
        (0o755, {"XDG_CACHE_HOME": "{}"}, "1"),
        (0o777, {"UV_CACHE_DIR": "{}/uv"}, None),
        (0o755, {"UV_CACHE_DIR": "{}/uv"}, "1"),
        (0o777, {"UV_CACHE_DIR": "{}/uv", "UV_NO_CACHE": "1"}, "1"),
    ],
)
def test_the_cache_of_another_user_is_not_used(mode: int, environment: dict[str, str], expected: str | None) -> None:
    """Seen by a user to whom the folder does not belong."""
    program = (
        "import os, runpy, sys\n"
        "from concurrent.futures import Future\n"
        "install = runpy.run_path(sys.argv[1])\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([])\n"
        "    os.setresgid(65534, 65534, 65534)\n"
        "    os.setresuid(65534, 65534, 65534)\n"
        "pip_config = Future()\n"
        "pip_config.set_result('')\n"
        "print(install['_uv_environment'](pip_config).get('UV_NO_CACHE'))\n"
    )
    # Below the folder of pytest nothing can be reached by others.
    with tempfile.TemporaryDirectory(prefix="onehop-cache-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "uv").mkdir()
        # Its owner may always write, but for root an ordinary user stands in.
        (Path(folder) / "uv").chmod(mode if os.geteuid() == 0 or mode == 0o777 else 0o555)
        done = subprocess.run(
            [sys.executable, "-c", program, REQUIREMENTS / "install.py"],
            env={"PATH": os.defpath, **{name: value.format(folder) for name, value in environment.items()}},
            capture_output=True,
            text=True,
            check=False,
        )
        (Path(folder) / "uv").chmod(0o755)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_a_lock_that_is_installed_costs_nothing(project: Project, index: Index, installer: str) -> None:
    project.lock("run", index.add_wheel("tool", "1.0"))
    # Here pip fetches uv.
    project.environment["PATH"] = "/usr/bin:/bin"
    expect(project.install(), installer)
    shutil.rmtree(index.folder)
    again = project.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    # A larger lock holds the smaller ones.
    assert "Installed" not in project.install("production").stdout


@pytest.mark.parametrize(
    ("pip_config", "environment", "expected"),
    [
        pytest.param("", {}, {}, id="nothing"),
        pytest.param(
            "global.index-url='https://mirror/simple'\nglobal.timeout='7.5'\nglobal.cert='/ca.pem'",
            {},
            {"UV_DEFAULT_INDEX": "https://mirror/simple", "UV_HTTP_TIMEOUT": "7", "SSL_CERT_FILE": "/ca.pem"},
            id="files",
        ),
        pytest.param(
            "install.index-url='https://install'\nglobal.index-url='https://global'",
            {},
            {"UV_DEFAULT_INDEX": "https://install"},
            id="the section of the command wins",
        ),
        pytest.param(
            "global.index-url='https://file'\n:env:.index-url='https://variable'",
            {"PIP_INDEX_URL": "https://variable"},
            {"UV_DEFAULT_INDEX": "https://variable"},
            id="a variable wins over a file",
        ),
        pytest.param(
            "global.index-url='https://file'",
            {"UV_DEFAULT_INDEX": "https://uv"},
            {},
            id="a variable of uv wins over both",
        ),
        pytest.param(
            "global.extra-index-url='\\nhttps://a\\nhttps://b'\nglobal.find-links='/one /two'",
            {"PIP_NO_INDEX": "yes", "PIP_NO_CACHE_DIR": "off"},
            {"UV_INDEX": "https://a https://b", "UV_FIND_LINKS": "/one,/two", "UV_NO_INDEX": "1"},
            id="lists and switches",
        ),
        pytest.param(
            "global.trusted-host='mirror'\nglobal.proxy='http://proxy:3128'\nglobal.client-cert='/me.pem'",
            {"REQUESTS_CA_BUNDLE": "/bundle.pem"},
            {
                "UV_INSECURE_HOST": "mirror",
                "ALL_PROXY": "http://proxy:3128",
                "SSL_CLIENT_CERT": "/me.pem",
                "SSL_CERT_FILE": "/bundle.pem",
            },
            id="the network",
        ),
    ],
)
def test_uv_is_told_what_pip_is_configured_with(
    pip_config: str, environment: dict[str, str], expected: dict[str, str]
) -> None:
    uv_variables = runpy.run_path(str(REQUIREMENTS / "install.py"))["uv_variables"]
    assert uv_variables(pip_config, environment) == {"UV_SYSTEM_CERTS": "1", **environment, **expected}
