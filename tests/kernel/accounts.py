"""Two accounts of ten each: what the tests of the database gateway change and read."""

from tests.fixtures.servers import Connection

TABLES = """
CREATE TABLE accounts (name text PRIMARY KEY, amount integer NOT NULL CONSTRAINT amount_positive CHECK (amount >= 0));
INSERT INTO accounts VALUES ('a', 10), ('b', 10);
"""
ADD = "UPDATE accounts SET amount = amount + $2 WHERE name = $1"
AMOUNTS = "SELECT array_agg(amount ORDER BY name) FROM accounts"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def bounds_transactions(connection: Connection) -> bool:
    """Whether the server ends a transaction that is too long, as PostgreSQL 17 and newer do."""
    return connection.get_server_version() >= (17,)
