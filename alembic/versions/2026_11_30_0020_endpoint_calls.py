"""An endpoint counts how often its owner tests and enables it, since nothing proves that the receiver is theirs."""

from alembic import op

revision = "0020_endpoint_calls"
down_revision = "0019_records_follow_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobs.webhook_endpoints ADD COLUMN IF NOT EXISTS calls_until timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs.webhook_endpoints DROP COLUMN calls_until")
