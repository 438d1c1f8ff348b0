"""Each attempt to deliver a webhook is on file, and administrators list the deliveries of all users by their state."""

from alembic import op

revision = "0025_webhook_history"
down_revision = "0024_job_administration"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.webhook_attempts (
            user_id     uuid NOT NULL,
            delivery_id uuid NOT NULL,
            at          timestamptz NOT NULL DEFAULT now(),
            status      bigint,
            ms          bigint NOT NULL,
            error       text,
            PRIMARY KEY (user_id, delivery_id, at),
            CONSTRAINT webhook_attempts_delivery_fkey FOREIGN KEY (user_id, delivery_id)
                REFERENCES jobs.webhook_deliveries (user_id, id) ON DELETE CASCADE
        )
    """)
    # Every delivery would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.webhook_deliveries_state_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_deliveries_state_idx ON jobs.webhook_deliveries (state, id)
        """)


def downgrade() -> None:
    op.execute("DROP INDEX jobs.webhook_deliveries_state_idx")
    op.execute("DROP TABLE jobs.webhook_attempts")
