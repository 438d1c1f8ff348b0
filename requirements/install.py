"""Makes `.venv` and installs a lock file: `python3 requirements/install.py production|run|test|dev`.

Needs only the standard library. A lock is complete, so nothing is resolved here: what it lists is installed, each file
is checked against its hash, and other packages are removed. uv does that in seconds; pip does it where uv does not run
or fails. Does nothing if the lock is the one that was installed last.
"""

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VENV = FOLDER.parent / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
# Each lock holds all of the ones before it, in the same versions.
LOCKS = ("production", "run", "test", "dev")
CHECKED = ("--no-deps", "--require-hashes")
WHEELS = "--only-binary=:all:"

# Nothing is built on a machine that only runs Onehop; one package of the tests has no wheel.
_MAY_BUILD = ("test", "dev")
# pip needs them for itself and for builds, so a lock that does not list them does not remove them.
_PIP_PACKAGES = {"pip", "setuptools", "wheel"}
# uv does not read pip's configuration: pip's option, uv's variable.
_UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "no-cache-dir": "UV_NO_CACHE",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}

# Packages of fonts require them for code of their own, which nothing of ours imports (`override-dependencies`).
_LEFT_OUT = re.compile(r"requires `?(justmytype|rinohtype)\b.*not installed")

Command = Sequence[str | Path]


class InstallError(Exception):
    """A step failed; the message is for the user."""


def main(name: str) -> None:
    """Bring `.venv` to the lock `name`. Raises InstallError."""
    with Path(__file__).open("rb") as itself:
        # Two terminals must not fill one folder at a time; the second then finds it done.
        fcntl.flock(itself, fcntl.LOCK_EX)
        if not _is_usable():
            _say(f"Creating .venv with Python {sys.version.split()[0]}")
            # Without pip, because installing pip takes longer than everything else that is installed.
            venv.EnvBuilder(clear=True, symlinks=True).create(VENV)
        elif any(_is_installed(lock) for lock in LOCKS[LOCKS.index(name) :]):
            return
        _install(name)


def uv_variables(pip_config: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv uses the same indexes, certificates and proxy as pip.

    `pip_config` is the output of `pip config list`. Variables of uv that the user has set are kept.
    """
    variables = {"UV_SYSTEM_CERTS": "1"}
    if "REQUESTS_CA_BUNDLE" in environment:
        variables["SSL_CERT_FILE"] = environment["REQUESTS_CA_BUNDLE"]
    for option, value in _pip_options(pip_config, environment).items():
        if option in _UV_VARIABLES and (translated := _translate(option, value)):
            variables[_UV_VARIABLES[option]] = translated
    return {**variables, **environment}


def _pip_options(pip_config: str, environment: Mapping[str, str]) -> dict[str, str]:
    """By the name of the option; as in pip, [install] wins over [global], and a PIP_… variable over both."""
    found: dict[str, str] = {}
    for section in ("global.", "install."):
        for line in pip_config.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                found[name.removeprefix(section)] = str(ast.literal_eval(value))
    for name, value in environment.items():
        if name.startswith("PIP_"):
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return found


def _translate(option: str, value: str) -> str:
    """Empty if uv's default is meant."""
    if option.startswith("no-"):
        return "1" if value.strip().lower() in {"1", "true", "yes", "on", "y", "t"} else ""
    if option.endswith("timeout"):
        return value.strip().partition(".")[0]
    return ("," if option == "find-links" else " ").join(value.split())


def _is_usable() -> bool:
    """False too when the Python that `.venv` was made with has gone, or an installation was interrupted."""
    probe = "import sys; raise SystemExit(sys.version_info < (3, 11))"
    return _starts([PYTHON, "-c", probe]) and not _incomplete().exists()


def _incomplete() -> Path:
    """The file that is in `.venv` while packages are installed."""
    return VENV / "incomplete"


def _is_installed(name: str) -> bool:
    installed = VENV / f"{name}.lock"
    return installed.exists() and installed.read_bytes() == _lock(name).read_bytes()


def _lock(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def _names(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9][a-z0-9-]*)(?:\[[^]]*\])?==", lock.read_text(encoding="utf-8"), re.MULTILINE))


def _install(name: str) -> None:
    started = time.monotonic()
    _say(f"Installing {len(_names(_lock(name)))} packages of requirements/{name}.txt (checked by hash)")
    _incomplete().touch()
    for old in LOCKS:
        (VENV / f"{old}.lock").unlink(missing_ok=True)
    # Looked for before the thread, which then finds it.
    _pip()
    with ThreadPoolExecutor(1) as threads:
        # Takes half a second, in which pip can already download uv.
        pip_config = threads.submit(_pip_config)
        installed = _has_uv(pip_config) and _install_by_uv(name, pip_config)
    if not installed:
        _say("uv cannot install here; pip does, which takes longer")
        _install_by_pip(name)
    shutil.copyfile(_lock(name), VENV / f"{name}.lock")
    _incomplete().unlink()
    _say(f"Installed ({time.monotonic() - started:.0f} s)")


def _has_uv(pip_config: "Future[str]") -> bool:
    """Whether the locked uv is in `.venv` and starts; installs it first, with the uv on the PATH or with pip."""
    if not _is_installed("uv"):
        lock: Command = [*CHECKED, WHEELS, "-r", _lock("uv")]
        on_path = shutil.which("uv")
        if not (
            (on_path and _run([on_path, "pip", "install", "--python", PYTHON, *lock], _uv_environment(pip_config)))
            or ((pip := _pip()) and _run([*pip, "install", *lock], _pip_environment()))
        ):
            return False
        shutil.copyfile(_lock("uv"), VENV / "uv.lock")
    return _starts([UV, "--version"])


def _install_by_uv(name: str, pip_config: "Future[str]") -> bool:
    command: list[str | Path] = [UV, "pip", "install", "--python", PYTHON, *CHECKED, "--exact"]
    # pip asks all indexes, uv would take a package from the first that has it in any version.
    command += ["--index-strategy=unsafe-best-match", "-r", _lock(name), "-r", _lock("uv")]
    command += ["--build-constraints", _lock("build"), "--require-build-hashes"] if name in _MAY_BUILD else [WHEELS]
    environment = _uv_environment(pip_config)
    return _run(command, environment) and _is_complete([UV, "pip", "check", "--python", PYTHON], environment)


def _install_by_pip(name: str) -> None:
    pip, environment = _pip(), _pip_environment()
    if pip is None:
        raise InstallError("There is no pip either. On Debian and Ubuntu: apt install python3-venv")
    steps = [[*pip, "install", *CHECKED, WHEELS, "-r", _lock(name)]]
    if name in _MAY_BUILD:
        # Without isolation, because pip would build with the newest setuptools of the index.
        steps = [
            [*pip, "install", *CHECKED, WHEELS, "-r", _lock("build")],
            [*pip, "install", *CHECKED, "--no-build-isolation", "-r", _lock(name)],
        ]
    for step in steps:
        if not _run(step, environment):
            raise InstallError("The packages could not be installed; see above.")
    folders = VENV.glob("lib/python*/site-packages/*.dist-info")
    present = {re.sub(r"[-_.]+", "-", folder.name.partition("-")[0].lower()) for folder in folders}
    if others := present - _names(_lock(name)) - _names(_lock("uv")) - _PIP_PACKAGES:
        _run([*pip, "uninstall", "--yes", *sorted(others)], environment)
    if not _is_complete([*pip, "check"], environment):
        raise InstallError(f"requirements/{name}.txt is not complete; see above.")


@cache
def _pip() -> Command | None:
    """pip, working on `.venv`: the one of the Python that runs this, or else a copy in `.venv`; None without both."""
    found = find_spec("pip")
    # This is what `pip --python` calls; called directly, pip starts once and not twice.
    runner = Path(str(found.origin)).with_name("__pip-runner__.py") if found else None
    if runner is not None and runner.exists():
        return [PYTHON, runner]
    pip: Command = [PYTHON, "-m", "pip"]
    return pip if _starts([*pip, "--version"]) or _starts([PYTHON, "-m", "ensurepip"]) else None


def _pip_config() -> str:
    if (pip := _pip()) is None:
        return ""
    return subprocess.run(
        [*pip, "config", "list"], capture_output=True, text=True, errors="replace", check=False
    ).stdout


def _pip_environment() -> dict[str, str]:
    return {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}


def _uv_environment(pip_config: "Future[str]") -> dict[str, str]:
    variables = uv_variables(pip_config.result(), os.environ)
    default = Path(variables.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "uv"
    if not _is_writable(Path(variables.get("UV_CACHE_DIR") or default)):
        # A user without a home folder, or with the cache of another user; uv would refuse to work.
        variables["UV_NO_CACHE"] = "1"
    return variables


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _starts(command: Command) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(command: Command, environment: Mapping[str, str]) -> bool:
    """Run a step, show its last line while it works, and its output if it fails. Returns whether it succeeded."""
    output: list[str] = []
    with subprocess.Popen(
        command,
        env={**environment, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            _show(line.strip())
    _show("")
    if process.returncode != 0:
        sys.stdout.write("".join(output[-30:]))
    return process.returncode == 0


def _is_complete(check: Command, environment: Mapping[str, str]) -> bool:
    """Whether `check` finds nothing that is required and not installed, but for what is left out."""
    done = subprocess.run(
        check,
        env={**environment, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    # It fails with a line for each requirement, or with none if it did not get as far.
    findings = [line for line in done.stdout.splitlines() if " require" in line]
    missing = [line for line in findings if not _LEFT_OUT.search(line)]
    if done.returncode == 0 or (findings and not missing):
        return True
    _say("\n".join(missing) or done.stdout)
    return False


def _show(text: str) -> None:
    """One line that rewrites itself in a terminal; nothing in a log."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # The Makefile chooses a Python that is new enough, but this script is also started directly.
    if sys.version_info < (3, 11):  # noqa: UP036
        _say(f"Onehop needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
        raise SystemExit(1)
    try:
        main(sys.argv[1])
    except InstallError as error:
        _say(str(error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        # `incomplete` is still there, so the next time starts with an empty environment.
        raise SystemExit(130) from None
