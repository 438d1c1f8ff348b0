"""`python -m app users …` and `python -m app keys …`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.environment import servers_for_settings
from app.cli.terminal import read_secret, say

if TYPE_CHECKING:
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
    from app.composition import close_resources, make_resources
    from app.identity.api import PasswordHashing, provision_account
    from app.kernel.errors import Unprocessable

    password = read_secret("Password", from_stdin=password_stdin, option="--password-stdin")

    async def create(settings: "Settings") -> bool:
        resources = make_resources(settings, application_name="onehop-cli")
        hashing = PasswordHashing(settings.identity)
        await resources.db.open()
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
    from app.composition import close_resources, make_resources
    from app.identity.api import rotate_signing_keys

    async def rotate_keys(settings: "Settings") -> str:
        resources = make_resources(settings, application_name="onehop-cli")
        await resources.db.open()
        try:
            return await rotate_signing_keys(resources.db, resources.keys)
        finally:
            await close_resources(resources)

    with servers_for_settings() as settings:
        active = asyncio.run(rotate_keys(settings))
    say(f"{active} signs from now on; processes take it over within a minute.")
