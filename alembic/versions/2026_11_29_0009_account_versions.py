"""Links carry the version of their account and end with it; log-ins are counted, so that parallel ones notice it."""

from alembic import op

revision = "0009_account_versions"
down_revision = "0008_webhook_messages_by_age"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A link of before has the version 0, which no account has: it is asked for once more.
    op.execute("ALTER TABLE identity.one_time_tokens ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE identity.accounts ADD COLUMN IF NOT EXISTS log_ins bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE identity.accounts DROP COLUMN log_ins")
    op.execute("ALTER TABLE identity.one_time_tokens DROP COLUMN version")
