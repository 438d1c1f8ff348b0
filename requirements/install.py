"""Makes `.venv` and installs a lock file: `python3 requirements/install.py production|run|dev`.

Needs only the standard library. Does nothing when the lock is the one that was installed last; shows one line
of progress otherwise.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VENV = FOLDER.parent / ".venv"
PYTHON = VENV / "bin" / "python"
# Each lock holds all of the ones before it, in the same versions.
LOCKS = ("production", "run", "dev")


def main(name: str) -> int:
    with Path(__file__).open("rb") as itself:
        # Two terminals must not fill one folder at a time; the second then finds it done.
        fcntl.flock(itself, fcntl.LOCK_EX)
        return _prepare(name)


def _prepare(name: str) -> int:
    if _is_usable() and any(_is_installed(lock) for lock in LOCKS[LOCKS.index(name) :]):
        return 0
    if not _is_usable():
        _say(f"Creating .venv with Python {sys.version.split()[0]}")
        if subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=False).returncode != 0:
            _say("Python could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv")
            return 1
    return _install(name)


def _is_usable() -> bool:
    """False too when the Python that `.venv` was made with has gone, or the folder holds none."""
    probe = "import sys, pip; raise SystemExit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([PYTHON, "-c", probe], stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def _is_installed(name: str) -> bool:
    installed = VENV / f"{name}.lock"
    return installed.exists() and installed.read_bytes() == _lock(name).read_bytes()


def _lock(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def _install(name: str) -> int:
    started = time.monotonic()
    lock = _lock(name)
    total = len(re.findall(r"^[A-Za-z0-9]", lock.read_text(encoding="utf-8"), re.MULTILINE))
    _say(f"Installing {total} packages of {lock.relative_to(FOLDER.parent)} (checked by hash)")
    for old in LOCKS:
        (VENV / f"{old}.lock").unlink(missing_ok=True)
    command: list[str | Path] = [PYTHON, "-m", "pip", "install", "--require-hashes", "--disable-pip-version-check"]
    if name != "dev":
        # Nothing is built on a machine that only runs Onehop; one tool of the tests exists as source alone.
        command.append("--only-binary=:all:")
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
    last: list[str] = []
    with subprocess.Popen(
        [*command, "--progress-bar=off", "-r", lock],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        done = 0
        for line in pip.stdout or ():
            last = [*last[-30:], line]
            if found := re.match(r"(?:Collecting|Requirement already satisfied:) ([^=<> ]+)", line):
                done += 1
                _show(f"  {done}/{total} {found[1]}", done)
            elif line.startswith("Installing"):
                _show("  unpacking", 0)
    _show("", 1)
    if pip.returncode != 0:
        sys.stdout.write("".join(last))
        _say("The packages could not be installed; see above.")
        return 1
    (VENV / f"{name}.lock").write_bytes(lock.read_bytes())
    _say(f"Installed ({time.monotonic() - started:.0f} s)")
    return 0


def _show(text: str, step: int) -> None:
    """One line that rewrites itself in a terminal; in a log every twentieth step."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K{text}")
    elif text and step % 20 == 0:
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Makefile chooses a new enough Python, but people also start this script themselves.
    if sys.version_info < (3, 11):  # noqa: UP036
        _say(f"Onehop needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
        raise SystemExit(1)
    try:
        raise SystemExit(main(sys.argv[1]))
    except KeyboardInterrupt:
        # What is half installed is not in the copy of the lock file, and done again the next time.
        raise SystemExit(130) from None
