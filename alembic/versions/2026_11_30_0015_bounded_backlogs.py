"""What waits for one user is counted without a look at what is over, and accounts that are closed have no more jobs."""

from alembic import op

revision = "0015_bounded_backlogs"
down_revision = "0014_invoice_seller"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.suspended_users (
            user_id uuid PRIMARY KEY,
            reason text NOT NULL,
            since timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        INSERT INTO jobs.suspended_users (user_id, reason)
        SELECT a.user_id, 'account_' || a.status FROM identity.accounts AS a
        WHERE a.status = 'banned' OR (a.status = 'deleted' AND a.purge_at > now())
        ON CONFLICT DO NOTHING
    """)
    # Every job would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_living_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_living_idx ON jobs.jobs (user_id, lane, state, run_at)
            WHERE state < 2
        """)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.webhook_deliveries_pending_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_deliveries_pending_idx
            ON jobs.webhook_deliveries (user_id, endpoint_id) WHERE state = 'pending'
        """)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_running_idx")


def downgrade() -> None:
    op.execute("CREATE INDEX jobs_running_idx ON jobs.jobs (user_id, lane) WHERE state = 1")
    op.execute("DROP INDEX jobs.webhook_deliveries_pending_idx")
    op.execute("DROP INDEX jobs.jobs_living_idx")
    op.execute("DROP TABLE jobs.suspended_users")
