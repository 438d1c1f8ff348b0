"""What the commands share: settings, servers for missing addresses, and how to fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from app.settings import Settings


@contextmanager
def servers_for_settings(*, valkey: bool = True) -> "Iterator[Settings]":
    """The settings, with embedded servers running for the addresses they lack."""
    from app.dev.embedded import EmbeddedServerError, servers
    from app.settings import load_settings, process_environ

    environ = process_environ()
    settings = load_settings(environ)
    postgres = settings.database.url is None
    valkey = valkey and settings.redis.url is None
    if not postgres and not valkey:
        yield settings
        return
    try:
        with servers(settings.data_dir, postgres=postgres, valkey=valkey) as started:
            given = {"DATABASE_URL": started.database_url, "REDIS_URL": started.redis_url}
            yield load_settings({**environ, **{name: url for name, url in given.items() if url is not None}})
    except EmbeddedServerError as error:
        fail(str(error))


def explanation(error: Exception) -> str | None:
    """What an operator can mend, in a line; None for an error of the program.

    The cause comes first: that a disk is full says more than that the database cannot answer.
    """
    from app.kernel.database.failures import outside_cause
    from app.kernel.errors import AppError
    from app.settings import storage_advice

    if isinstance(error, OSError) and (advice := storage_advice(error)) is not None:
        return f"{error.filename or 'A file'} cannot be written ({error.strerror}); {advice}"
    if isinstance(error, AppError):
        return outside_cause(error) or error.detail or error.title
    return outside_cause(error)


def fail(text: str, *, code: int = 1) -> NoReturn:
    typer.echo(text, err=True)
    raise SystemExit(code)
