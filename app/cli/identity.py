"""`python -m app users …` and `python -m app keys …`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.cli.environment import servers_for_settings
from app.cli.terminal import operator_name, read_secret, say

if TYPE_CHECKING:
    from app.kernel.resources import Resources
    from app.settings import Settings

T = TypeVar("T")

users = typer.Typer(help="Accounts.", no_args_is_help=True)
keys = typer.Typer(help="The keys that sign access tokens.", no_args_is_help=True)


@users.command("create-admin")
def create_admin(
    email: Annotated[str, typer.Argument()],
    *,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking for it.")
    ] = False,
) -> None:
    """Make an administrator's account with a verified address; asks for its password."""
    from app.composition import close_resources, make_resources, open_database
    from app.identity.api import PasswordHashing, operator, provision_account
    from app.kernel.errors import Unprocessable

    password = read_secret("Password", from_stdin=password_stdin, option="--password-stdin")

    async def create(settings: "Settings") -> bool:
        resources = make_resources(settings, application_name="onehop-cli")
        hashing = PasswordHashing(settings.identity)
        await open_database(resources)
        try:
            made = await provision_account(
                resources.db,
                hashing,
                resources.clock,
                operator(operator_name()),
                email=email,
                password=password,
                display_name=None,
                role="admin",
            )
        finally:
            await hashing.close()
            await close_resources(resources)
        return made is not None

    try:
        with servers_for_settings() as settings:
            is_made = asyncio.run(create(settings))
    except Unprocessable as error:
        say(" ".join(item.detail for item in error.errors))
        raise typer.Exit(1) from error
    say(f"{email} is an administrator." if is_made else f"There is an account with {email} already; nothing changed.")
    raise typer.Exit(0 if is_made else 1)


@keys.command("rotate")
def rotate() -> None:
    """Retire the active key, activate the next one, and publish another next one."""
    from app.identity.api import check_secret, operator, rotate_signing_keys

    async def rotate_keys(own: "Resources") -> str:
        await check_secret(own.db, own.keys)
        return await rotate_signing_keys(own.db, own.keys, own.clock, operator(operator_name()))

    active = _with_resources(rotate_keys)
    say(f"{active} signs from now on; processes take it over within a minute.")


@keys.command("replace")
def replace() -> None:
    """Make new keys in place of all there are, after APP_SECRET_KEY was lost or changed; everybody logs in again."""
    from app.identity.api import operator, replace_signing_keys

    active = _with_resources(lambda own: replace_signing_keys(own.db, own.keys, own.clock, operator(operator_name())))
    say(f"{active} signs from now on, and no older token counts. Restart the processes that run with another secret.")


def audit(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show so many entries.")] = 50,
) -> None:
    """Show what operators did at the command line, newest first."""
    from app.identity.api import OPERATOR_ID, read_security_events

    page = _with_resources(lambda own: read_security_events(own.db, own.cursors, OPERATOR_ID, limit=limit, cursor=None))
    for event in page.items:
        say(f"{event.created_at:%Y-%m-%dT%H:%M:%SZ}  {event.action:<24} {event.data}  {event.user_agent}")


def _with_resources(work: "Callable[[Resources], Awaitable[T]]") -> T:
    from app.composition import close_resources, make_resources, open_database

    async def run(settings: "Settings") -> T:
        resources = make_resources(settings, application_name="onehop-cli")
        await open_database(resources)
        try:
            return await work(resources)
        finally:
            await close_resources(resources)

    with servers_for_settings() as settings:
        return asyncio.run(run(settings))


async def check_installation_secret(settings: "Settings") -> None:
    """Raises SettingsError if the database was used with another APP_SECRET_KEY."""
    from app.identity.api import check_secret
    from app.kernel.database import Database
    from app.kernel.sealing import Keys

    db = Database(settings.database, application_name="onehop-cli")
    await db.open()
    try:
        await check_secret(db, Keys(settings.secret_key.get_secret_value()))
    finally:
        await db.close()
