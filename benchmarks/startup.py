"""From `git clone` to the first answer: `python -m benchmarks.startup`.

Three starts with `make run` of what is committed: a clone with an empty cache of uv, a second clone with the cache of
the first, and a second start of that. The first needs the network.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from benchmarks import machine
from benchmarks.verdicts import Verdicts

_SECONDS = 600.0
_TEXT = (
    "Seconds until `/readyz` answers 200, and when each step of `make run` was done, counted from the `git clone` or, "
    "for the warm start, from `make run`. Made by `python -m benchmarks.startup`."
)
# What a line of the output begins with, and the step that is done then.
_STEPS = {
    "Installing": "environment made",
    "Installed": "packages installed",
    "PostgreSQL started": "servers started",
    "Schema is at": "schema made",
    "Onehop is ready": "log-ins shown",
}
_LAST_STEP = "log-ins shown"


def main() -> int:
    verdicts = Verdicts("From clone to first answer")
    with tempfile.TemporaryDirectory(prefix="onehop-startup-") as name:
        folder = Path(name)
        environment = {**os.environ, "UV_CACHE_DIR": str(folder / "cache")}
        for variable in ("DATABASE_URL", "REDIS_URL", "APP_DATA_DIR", "VIRTUAL_ENV"):
            environment.pop(variable, None)
        for what, bound, clones in (
            ("clone, empty cache", 18.0, True),
            ("clone, warm cache", 12.0, True),
            ("warm start", 4.0, False),
        ):
            started = time.monotonic()
            if clones:
                shutil.rmtree(folder / "onehop", ignore_errors=True)
                started = time.monotonic()
                command: list[str | Path] = ["git", "clone", "--quiet", machine.ROOT, folder / "onehop"]
                subprocess.run(command, check=True)
            seconds, steps = _start(folder / "onehop", environment, started)
            note = ", ".join(f"{step} {at:.1f}" for step, at in steps.items())
            verdicts.at_most(f"{what}: s", seconds, bound, f"({note})")
    verdicts.write(machine.ROOT / "docs" / "benchmarks" / "start.md", _TEXT)
    return verdicts.exit_code


def _start(clone: Path, environment: dict[str, str], started: float) -> tuple[float, dict[str, float]]:
    """Seconds since `started` of the first answer, and of each step before it."""
    port = machine.free_port()
    steps: dict[str, float] = {}
    # A group of its own, so that the signal reaches `make` and what it runs, as Ctrl-C does.
    with subprocess.Popen(
        ["make", "run", f"PORT={port}"],  # noqa: S607 - as a user types it
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        reader = threading.Thread(target=_read, args=(process, started, steps))
        reader.start()
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() - started > _SECONDS:
                    raise RuntimeError("`make run` did not come up; see its output above")
                time.sleep(0.02)
            seconds = time.monotonic() - started
            while _LAST_STEP not in steps and process.poll() is None:
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            reader.join()
    return seconds, dict(steps)


def _read(process: "subprocess.Popen[str]", started: float, steps: dict[str, float]) -> None:
    for line in process.stdout or ():
        for begin, step in _STEPS.items():
            if line.startswith(begin):
                steps.setdefault(step, time.monotonic() - started)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
