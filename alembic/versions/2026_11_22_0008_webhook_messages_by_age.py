"""Old webhook messages are found without a look at all of them."""

from alembic import op

revision = "0008_webhook_messages_by_age"
down_revision = "0007_session_ends"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Every event would wait behind the look at all messages that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs.webhook_messages_created_at_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_messages_created_at_idx
            ON jobs.webhook_messages (created_at)
        """)


def downgrade() -> None:
    op.execute("DROP INDEX jobs.webhook_messages_created_at_idx")
