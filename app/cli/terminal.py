import getpass
import socket
import sys
from contextlib import suppress

import typer

from app.cli.environment import fail


def say(text: str) -> None:
    """Write a line. A terminal that was closed must not keep us from stopping what we started."""
    with suppress(OSError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def operator_name() -> str:
    """The actor of a command, for the audit trail: the system's user and host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # A container may run as a number that has no name.
        user = "unknown"
    return f"command line: {user}@{socket.gethostname()}"


def read_secret(name: str, *, from_stdin: bool, option: str) -> str:
    """A secret that stands in no shell history and no list of processes.

    It is asked for twice in a terminal, unseen; with `from_stdin` it is the first line of standard input.
    """
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        fail(f"There is no terminal to ask for the {name.lower()} in. Give it on standard input, with {option}.")
    secret: str = typer.prompt(name, hide_input=True, confirmation_prompt=True)
    return secret
