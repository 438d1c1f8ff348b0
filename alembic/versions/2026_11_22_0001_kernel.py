"""What belongs to no module: the idempotency keys."""

from alembic import op

revision = "0001_kernel"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA kernel")
    # `status` is NULL while the first request with the key still runs.
    op.execute("""
        CREATE TABLE kernel.idempotency_keys (
            caller       text NOT NULL,
            operation    text NOT NULL,
            key          text NOT NULL,
            request_hash bytea NOT NULL,
            status       bigint,
            body         bytea,
            created_at   timestamptz NOT NULL DEFAULT now(),
            expires_at   timestamptz NOT NULL,
            PRIMARY KEY (caller, operation, key)
        )
    """)
    op.execute("CREATE INDEX idempotency_keys_expires_at_idx ON kernel.idempotency_keys (expires_at)")


def downgrade() -> None:
    op.execute("DROP TABLE kernel.idempotency_keys")
    op.execute("DROP SCHEMA kernel")
