"""Writes the lock files from pyproject.toml: `python requirements/lock.py [--upgrade]`.

The locks hold for every platform and Python, carry hashes and no index address, and agree with one another:
each one is a constraint of the next. They list the extras that one package wants of another, because pip takes
`part[extra]` from the index in its newest version if the lock has only `part`.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OPTIONS = ("--universal", "--python-version=3.11", "--generate-hashes", "--no-strip-extras")
QUIET = ("--no-header", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--quiet")
# From the smallest to the largest; each holds all of the ones before it.
CONTENTS = {
    "production": ("pyproject.toml", "--group=fonts"),
    "run": ("pyproject.toml", "--group=fonts", "--group=embedded"),
    "test": ("pyproject.toml", "--group=fonts", "--group=test"),
    "dev": ("pyproject.toml", "--group=fonts", "--group=test", "--group=lint", "--group=bench"),
    # After `dev`, so that it is the same uv.
    "uv": ("--group=installer",),
    "build": ("--group=build",),
}
# Of an environment of its own, which need not agree with the others.
ALONE = {"clients": ("--group=clients",)}


def main(extra: list[str]) -> None:
    before: list[str] = []
    for name, content in (CONTENTS | ALONE).items():
        target = f"requirements/{name}.txt"
        constraints = [] if name in ALONE else before
        command = [sys.executable, "-m", "uv", "pip", "compile", *content, *OPTIONS, *QUIET, *constraints]
        subprocess.run([*command, *extra, "--output-file", target], cwd=FOLDER.parent, check=True)
        sys.stdout.write(f"{target}: {(FOLDER.parent / target).read_text().count(' --hash=')} hashes\n")
        before = ["--constraint", target]


if __name__ == "__main__":
    main(sys.argv[1:])
