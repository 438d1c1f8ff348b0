"""A user's files are one range of an index, because room is made among them before each new one is written."""

from alembic import op

revision = "0022_files_by_user"
down_revision = "0021_mail_by_hand_over"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Every job would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.artifacts_user_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS artifacts_user_idx ON jobs.artifacts (user_id, created_at DESC)
            WHERE deleted_at IS NULL
        """)


def downgrade() -> None:
    op.execute("DROP INDEX jobs.artifacts_user_idx")
