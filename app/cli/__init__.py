"""`python -m app`: what one does with Onehop from a terminal."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.environment import explanation, fail, servers_for_settings
from app.cli.identity import audit, keys, users
from app.cli.jobs import jobs, mail
from app.cli.terminal import operator_name, say
from app.kernel.errors import EXIT_CONFIG

if TYPE_CHECKING:
    from app.dev.welcome import LogIn
    from app.settings import Settings

_APP = Path(__file__).resolve().parents[1]

cli = typer.Typer(
    help="Onehop: identity, users and jobs in one process.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
migrate = typer.Typer(help="Change the database's schema.", no_args_is_help=True)
cli.add_typer(migrate, name="migrate")
cli.add_typer(users, name="users")
cli.add_typer(keys, name="keys")
cli.add_typer(jobs, name="jobs")
cli.add_typer(mail, name="mail")
cli.command()(audit)


def run() -> None:
    """The entry point.

    Wrong settings end with one message that names all of them and exit code 78, what the operator can mend with one
    line and exit code 1, and the rest with a traceback.
    """
    from app.kernel.settings import SettingsError

    try:
        cli(prog_name="python -m app")
    except SettingsError as error:
        fail("The settings are wrong:\n  " + "\n  ".join(error.problems), code=EXIT_CONFIG)
    except Exception as error:
        text = explanation(error)
        if text is None:
            raise
        fail(text)


@cli.command()
def dev(
    *, reload: Annotated[bool, typer.Option("--reload", help="Start API and worker anew on changes.")] = False
) -> None:
    """Start everything for development: servers, schema, demo data, API and worker; stop it with Ctrl-C."""
    from app.cli.dev import run_everything
    from app.cli.probe import port_problem
    from app.dev.embedded import EmbeddedServerError
    from app.dev.supervisor import ProgramFailed
    from app.settings import load_settings

    settings = load_settings()
    if settings.is_production:
        fail("APP_ENV is production: use `serve`, `worker` and `migrate up` there.", code=EXIT_CONFIG)
    if problem := port_problem(settings.host, settings.port):
        fail(problem)
    try:
        run_everything(settings, reload=reload)
    except ProgramFailed as error:
        fail(str(error), code=error.code)
    except (EmbeddedServerError, ConnectionError) as error:
        fail(str(error))


@cli.command()
def serve(
    workers: Annotated[int | None, typer.Option(help="API processes; default APP_WORKERS.", min=1)] = None,
    grace: Annotated[int, typer.Option(help="Seconds that requests in flight get at the end.", min=0)] = 25,
    *,
    reload: Annotated[bool, typer.Option("--reload", help="One process that starts anew on changes.")] = False,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the port from the server that runs there, and end that one.")
    ] = False,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the newest schema before the port is bound; 0: none.", min=0)
    ] = 0,
) -> None:
    """Serve the API on HOST and PORT."""
    import asyncio

    from app.cli.probe import port_problem
    from app.kernel.observability.telemetry import configure_logging
    from app.kernel.server import serve as serve_application
    from app.settings import load_settings

    settings = load_settings()
    if not takeover and (problem := port_problem(settings.host, settings.port)):
        fail(problem)
    workers = 1 if reload else workers or settings.workers
    if wait:
        from app.kernel.schema.revision import wait_for_schema

        if workers == 1 and not reload:
            # This process serves, so it loads the application while it waits for the database.
            import_module("app.main")
        asyncio.run(wait_for_schema(settings.database.direct_dsn, wait))
    # For the process that watches over several; the others do so again.
    configure_logging(settings.log, production=settings.is_production)
    serve_application(
        "app.main:app",
        settings.connections,
        host=settings.host,
        port=settings.port,
        workers=workers,
        grace_seconds=grace,
        reload_dir=_APP if reload else None,
        takes_over=takeover,
        max_stall=settings.loop.max_stall,
    )


@cli.command()
def worker(
    *, reload: Annotated[bool, typer.Option("--reload", help="Start anew on changes of the source.")] = False
) -> None:
    """Run background jobs until SIGTERM."""
    if reload:
        from app.kernel.observability.telemetry import configure_logging
        from app.kernel.server import reload_on_changes

        # The process that watches holds the servers, so that they outlive each of the others.
        with servers_for_settings() as settings:
            configure_logging(settings.log, production=settings.is_production)
            reload_on_changes(_work, _APP)
    else:
        _work()


def _work() -> None:
    import uvloop

    from app.worker import run as run_worker

    with servers_for_settings() as settings:
        uvloop.run(run_worker(settings))


@migrate.command()
def up(revision: Annotated[str, typer.Argument()] = "head") -> None:
    """Apply migrations, up to REVISION."""
    import asyncio

    from app.kernel.schema.migrations import upgrade

    with servers_for_settings(valkey=False) as settings:
        asyncio.run(upgrade(settings.database.direct_dsn, revision))


@migrate.command(context_settings={"ignore_unknown_options": True})
def down(revision: Annotated[str, typer.Argument(help="A revision, -1 for one step, or base.")]) -> None:
    """Undo migrations, down to REVISION."""
    import asyncio

    from app.kernel.schema.migrations import downgrade

    with servers_for_settings(valkey=False) as settings:
        asyncio.run(downgrade(settings.database.direct_dsn, revision))


@migrate.command()
def status() -> None:
    """Show the database's revision and the newest one; exit code 1 if they differ."""
    import asyncio

    from app.kernel.schema.migrations import status as read_status

    with servers_for_settings(valkey=False) as settings:
        current, newest = asyncio.run(read_status(settings.database.direct_dsn))
    say(f"database: {current or 'empty'}\nnewest:   {newest}")
    raise typer.Exit(0 if current == newest else 1)


@cli.command()
def restored(
    *,
    nothing_lost: Annotated[
        bool, typer.Option("--nothing-lost", help="The database was only moved: sessions and caches stay good.")
    ] = False,
) -> None:
    """Say that the database was restored from a backup, before the API starts on it.

    Ends all sessions and access tokens and makes what Redis and clients have cached worthless.
    """
    import asyncio

    from app.identity.api import operator, record_operator_act
    from app.kernel.clock import SystemClock
    from app.kernel.database import Database
    from app.kernel.database.incarnation import say_restored

    async def say_it(settings: "Settings") -> None:
        db = Database(settings.database, application_name="onehop-cli")
        await db.open()
        try:
            await say_restored(db, nothing_lost=nothing_lost)
            data = json.dumps({"nothing_lost": nothing_lost})
            await record_operator_act(db, SystemClock(), operator(operator_name()), "database_restored", data=data)
        finally:
            await db.close()

    with servers_for_settings(valkey=False) as settings:
        asyncio.run(say_it(settings))
    say(
        "The database has a new place; sessions and caches stay good."
        if nothing_lost
        else "A new life of the database has begun: all users log in again, and nothing cached before counts."
    )


@cli.command()
def seed() -> None:
    """Add the demo people and their events; development only."""
    import asyncio

    from app.dev.demo import seed as add_demo_data

    with servers_for_settings() as settings:
        _refuse_in_production(settings)
        for log_in in asyncio.run(add_demo_data(settings)):
            say(f"{log_in.email} / {log_in.password} ({log_in.role})")


@cli.command(hidden=True)
def prepare(
    report: Annotated[Path, typer.Argument()],
    *,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the database.", min=0)] = 0,
) -> None:
    """What `dev` runs first: schema and demo data in one process; the log-ins go to REPORT as JSON."""
    import asyncio

    from app.kernel.schema.revision import SchemaState, newest_revision, schema_of
    from app.settings import load_settings

    settings = load_settings()
    _refuse_in_production(settings)
    dsn = settings.database.direct_dsn

    async def bring_schema_up_to_date() -> None:
        try:
            schema = await schema_of(dsn)
        except ConnectionError:
            if not wait:
                raise
            # It is just being made, so it will need the migrations, whose packages are loaded meanwhile.
            import_module("app.kernel.schema.migrations")
            schema = await schema_of(dsn, wait=wait)
        if schema is SchemaState.OLD:
            from app.kernel.schema.migrations import upgrade

            await upgrade(dsn)
            say(f"Schema is at {newest_revision()}")

    async def add_demo_data() -> "list[LogIn]":
        # Loaded only now, because the API can go on from here.
        from app.dev.demo import seed

        return await seed(settings)

    asyncio.run(bring_schema_up_to_date())
    report.write_text(json.dumps(asyncio.run(add_demo_data())), encoding="utf-8")


@cli.command()
def doctor() -> None:
    """Check this machine, the settings, the servers, the schema and the disk; exit code 1 if something is
    wrong.
    """
    from app.cli.doctor import examine

    problems = 0
    for finding in examine():
        problems += finding.verdict == "FAIL"
        say(f"{finding.verdict:<4} {finding.subject}: {finding.text}")
    raise typer.Exit(1 if problems else 0)


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document as JSON."""
    from app.main import create_app
    from app.settings import load_settings

    document = create_app(load_settings()).openapi()
    say(json.dumps(document, indent=2, ensure_ascii=False))


@cli.command()
def metrics() -> None:
    """Print the table of all metrics that docs/metrics.md shows."""
    from app.cli.metrics import metrics_page

    typer.echo(metrics_page(), nl=False)


@cli.command()
def config(
    *,
    changed: Annotated[bool, typer.Option("--changed", help="Only settings that differ from their default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for programs.")] = False,
    env_example: Annotated[
        bool, typer.Option("--env-example", help="Print the text of .env.example instead; reads no settings.")
    ] = False,
) -> None:
    """Print the settings in force: value, meaning, unit, default and origin. Secrets are masked."""
    from app.cli import configuration as page
    from app.settings import load_settings, process_environ

    if env_example:
        typer.echo(page.env_example(), nl=False)
        return
    environ = process_environ()
    values = [
        value for value in page.setting_values(load_settings(environ), environ) if value.is_changed or not changed
    ]
    say(page.as_json(values) if as_json else page.as_text(values))


def _refuse_in_production(settings: "Settings") -> None:
    if settings.is_production:
        fail("Demo data has no place in production.", code=EXIT_CONFIG)
