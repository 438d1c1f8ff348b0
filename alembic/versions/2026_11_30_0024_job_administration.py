"""Administrators find one job among millions, and change many by a job of its own; schedules pause; workers report.

`jobs_search_idx` holds the jobs of each queue, kind and state as one range, so that any of these filters, or none, is a
few ranges. `jobs_error_idx` holds only jobs that have failed a run and not succeeded since.
"""

from alembic import op

revision = "0024_job_administration"
down_revision = "0023_invoices_follow_their_email"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.positions (
            job_id  uuid PRIMARY KEY REFERENCES jobs.jobs (id) ON DELETE CASCADE,
            last_id uuid,
            done    bigint NOT NULL,
            skipped bigint NOT NULL,
            total   bigint NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.workers (
            worker_id    text PRIMARY KEY,
            version      text NOT NULL,
            queues       text[] NOT NULL,
            slots        bigint NOT NULL,
            running      bigint NOT NULL,
            started_at   timestamptz NOT NULL DEFAULT now(),
            heartbeat_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        ALTER TABLE jobs.schedules
        ADD COLUMN IF NOT EXISTS paused_at timestamptz,
        ADD COLUMN IF NOT EXISTS last_job_id uuid
    """)
    # Every job would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_search_idx")
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_search_idx ON jobs.jobs (lane, kind, state, id)")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_error_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_error_idx ON jobs.jobs ((error ->> 'code'), id)
            WHERE error IS NOT NULL
        """)


def downgrade() -> None:
    op.execute("DROP INDEX jobs.jobs_error_idx")
    op.execute("DROP INDEX jobs.jobs_search_idx")
    op.execute("ALTER TABLE jobs.schedules DROP COLUMN paused_at, DROP COLUMN last_job_id")
    op.execute("DROP TABLE jobs.workers")
    op.execute("DROP TABLE jobs.positions")
