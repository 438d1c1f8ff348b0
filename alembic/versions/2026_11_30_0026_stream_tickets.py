"""Tickets that have opened a stream open none again."""

from alembic import op

revision = "0026_stream_tickets"
down_revision = "0025_webhook_history"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.spent_tickets (
            id         uuid PRIMARY KEY,
            expires_at timestamptz NOT NULL
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE jobs.spent_tickets")
