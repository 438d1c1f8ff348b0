import sys
from contextlib import suppress


def say(text: str) -> None:
    """Write a line. A terminal that was closed must not keep us from stopping what we started."""
    with suppress(OSError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
