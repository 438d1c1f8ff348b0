"""Writes the lock files from pyproject.toml: `python requirements/lock.py [--upgrade]`.

The locks hold for every platform and Python, carry hashes and no index address, and agree with one another:
each one is a constraint of the next.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OPTIONS = ("--universal", "--python-version=3.11", "--generate-hashes", "--no-header", "--no-emit-index-url")
QUIET = ("--no-emit-find-links", "--no-annotate", "--quiet")


def main(extra: list[str]) -> None:
    before: list[str] = []
    for name, groups in (("production", []), ("run", ["--group=embedded"]), ("dev", ["--group=dev", "--group=bench"])):
        target = f"requirements/{name}.txt"
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "pyproject.toml",
            *OPTIONS,
            *QUIET,
            *groups,
            *before,
        ]
        subprocess.run([*command, *extra, "--output-file", target], cwd=FOLDER.parent, check=True)
        sys.stdout.write(f"{target}: {(FOLDER.parent / target).read_text().count(' --hash=')} hashes\n")
        before = ["--constraint", target]


if __name__ == "__main__":
    main(sys.argv[1:])
