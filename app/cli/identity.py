"""`python -m app users …` and `python -m app keys …`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.environment import servers_for_settings
from app.cli.terminal import read_secret, say

if TYPE_CHECKING:
    from app.kernel.database import Database
    from app.kernel.keys import Keys
    from app.settings import Settings

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
    from app.identity.api import PasswordHashing, provision_account
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
                email=email,
                password=password,
                display_name=None,
                role="admin",
            )
        finally:
            await asyncio.to_thread(hashing.close)
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
    from app.identity.api import check_secret, rotate_signing_keys

    async def rotate_keys(db: "Database", secrets: "Keys") -> str:
        await check_secret(db, secrets)
        return await rotate_signing_keys(db, secrets)

    active = _with_keys(rotate_keys)
    say(f"{active} signs from now on; processes take it over within a minute.")


@keys.command("replace")
def replace() -> None:
    """Make new keys in place of all there are, after APP_SECRET_KEY was lost or changed; everybody logs in again."""
    from app.identity.api import replace_signing_keys

    active = _with_keys(replace_signing_keys)
    say(f"{active} signs from now on, and no older token counts. Restart the processes that run with another secret.")


def _with_keys(work: "Callable[[Database, Keys], Awaitable[str]]") -> str:
    from app.composition import close_resources, make_resources, open_database

    async def run(settings: "Settings") -> str:
        resources = make_resources(settings, application_name="onehop-cli")
        await open_database(resources)
        try:
            return await work(resources.db, resources.keys)
        finally:
            await close_resources(resources)

    with servers_for_settings() as settings:
        return asyncio.run(run(settings))


async def check_installation_secret(settings: "Settings") -> None:
    """Raises SettingsError if the database was used with another APP_SECRET_KEY."""
    from app.identity.api import check_secret
    from app.kernel.database import Database
    from app.kernel.keys import Keys

    db = Database(settings.database, application_name="onehop-cli")
    await db.open()
    try:
        await check_secret(db, Keys(settings.secret_key.get_secret_value()))
    finally:
        await db.close()
