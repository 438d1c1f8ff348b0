"""What alembic runs for every command, online and offline (`--sql`)."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from app.kernel.schema import migrations

config = context.config


def configure_offline() -> None:
    """Print the SQL instead of running it; the linter of migrations reads it."""
    context.configure(dialect_name="postgresql", output_buffer=config.output_buffer)
    with context.begin_transaction():
        context.execute(migrations.TIMEOUTS)
        context.run_migrations()


def run(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    configure_offline()
elif (given := config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(migrations.with_connection(os.environ["DATABASE_URL"], run))
