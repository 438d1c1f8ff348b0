"""Ends of sessions that a webhook subscribes to, marked by the statement that ends them."""

from alembic import op

revision = "0007_session_ends"
down_revision = "0006_attempts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE identity.sessions ADD COLUMN IF NOT EXISTS has_unpublished_end boolean NOT NULL DEFAULT false
    """)
    # Every request would wait behind the look at all sessions that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS identity.sessions_unpublished_end_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_unpublished_end_idx
            ON identity.sessions (user_id, id) WHERE has_unpublished_end
        """)


def downgrade() -> None:
    op.execute("DROP INDEX identity.sessions_unpublished_end_idx")
    op.execute("ALTER TABLE identity.sessions DROP COLUMN has_unpublished_end")
