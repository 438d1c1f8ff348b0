"""A streaming replica of an embedded Postgres, and its promotion."""

from collections.abc import Mapping
from pathlib import Path

from app.kernel.embedded import THROWAWAY_POSTGRES, EmbeddedPostgres
from app.kernel.embedded.privileges import make_private_dir, server_user
from app.kernel.embedded.processes import run_to_end


def make_standby(
    primary: EmbeddedPostgres, data_dir: Path, settings: Mapping[str, str] = THROWAWAY_POSTGRES
) -> EmbeddedPostgres:
    """A started hot standby that follows `primary`, its data in the new folder `data_dir`; `settings` as there."""
    programs = primary._programs
    user = server_user(data_dir, [programs / "postgres", programs / "pg_basebackup"])
    make_private_dir(data_dir, user)
    run_to_end(
        [
            programs / "pg_basebackup",
            *("--dbname", primary.dsn("postgres")),
            *("--pgdata", data_dir),
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ],
        user=user,
    )
    standby = EmbeddedPostgres(data_dir, settings=settings, die_with_parent=True)
    standby.start()
    return standby


def promote(standby: EmbeddedPostgres) -> None:
    """Makes it a primary; it takes writes when this returns."""
    run_to_end(
        [
            standby._programs / "psql",
            *("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"),
            *("--dbname", standby.dsn("postgres")),
            *("--command", "SELECT pg_promote(wait => true)"),
        ],
        user=None,
    )
