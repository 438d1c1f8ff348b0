"""Accounts count how often their second factor was turned on or off; old audit entries are found by age."""

from alembic import op

revision = "0017_factor_epochs"
down_revision = "0016_job_states"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE identity.accounts ADD COLUMN IF NOT EXISTS factor_epoch bigint NOT NULL DEFAULT 1")
    # Every entry would wait behind the look at all rows that an index begins with.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS identity.security_events_created_at_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS security_events_created_at_idx
            ON identity.security_events (created_at)
        """)


def downgrade() -> None:
    op.execute("DROP INDEX identity.security_events_created_at_idx")
    op.execute("ALTER TABLE identity.accounts DROP COLUMN factor_epoch")
