"""A user's jobs in one state are one range of an index, so that they are counted and listed without the others.

`jobs_user_idx` is `jobs_list_idx` without the state, which nothing reads from there any more.
"""

from alembic import op

revision = "0016_job_states"
down_revision = "0015_bounded_backlogs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Every job would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_state_idx")
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_state_idx ON jobs.jobs (user_id, state, id)")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_user_idx")
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_user_idx ON jobs.jobs (user_id, id)")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.jobs_list_idx")


def downgrade() -> None:
    op.execute("CREATE INDEX jobs_list_idx ON jobs.jobs (user_id, id DESC) INCLUDE (state)")
    op.execute("DROP INDEX jobs.jobs_user_idx")
    op.execute("DROP INDEX jobs.jobs_state_idx")
