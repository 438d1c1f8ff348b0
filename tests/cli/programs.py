"""Runs `python -m app` and finds what it has started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.fixtures.embedded import is_alive
from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(100),
    )


def processes(environment: dict[str, str]) -> list[psutil.Process]:
    """Everything that works on the test's data folder: by its arguments, its environment or its parent."""
    directory = environment["APP_DATA_DIR"]
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + process.environ().get("APP_DATA_DIR", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if directory in text and process.pid != os.getpid() and is_alive(process):
            found[process.pid] = process
    return list(found.values())
