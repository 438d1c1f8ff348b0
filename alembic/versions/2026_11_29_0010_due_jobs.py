"""Jobs that are due are found without a look at those that are not.

`is_due` is false until a job's time has come; the relay sets it then. Rows of an older release, which does not know the
column, are taken for jobs whose time has yet to come, and marked as soon as the relay sees that it has.
"""

from alembic import op

revision = "0010_due_jobs"
down_revision = "0009_account_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE jobs.jobs
        ADD COLUMN IF NOT EXISTS is_due boolean NOT NULL DEFAULT false,
        ADD COLUMN IF NOT EXISTS postponed_since timestamptz
    """)
    # Every job would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_turns_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_turns_idx ON jobs.jobs (lane, user_id, priority, run_at)
            WHERE state = 0 AND dispatched_at IS NULL AND is_due
        """)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_scheduled_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_scheduled_idx ON jobs.jobs (lane, run_at)
            WHERE state = 0 AND dispatched_at IS NULL AND NOT is_due
        """)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_waiting_idx")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_waiting_run_at_idx")


def downgrade() -> None:
    op.execute("""
        CREATE INDEX jobs_waiting_idx ON jobs.jobs (lane, user_id, priority, run_at)
        WHERE state = 0 AND dispatched_at IS NULL
    """)
    op.execute("""
        CREATE INDEX jobs_waiting_run_at_idx ON jobs.jobs (run_at)
        WHERE state = 0 AND dispatched_at IS NULL
    """)
    op.execute("DROP INDEX jobs.jobs_scheduled_idx")
    op.execute("DROP INDEX jobs.jobs_turns_idx")
    op.execute("ALTER TABLE jobs.jobs DROP COLUMN is_due, DROP COLUMN postponed_since")
