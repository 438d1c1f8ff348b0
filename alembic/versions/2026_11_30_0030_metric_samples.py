"""What the processes count is kept for a day, in rows that all of them share, so that their number is bounded."""

from alembic import op

revision = "0030_metric_samples"
down_revision = "0029_passkeys"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS kernel.metric_samples (
            step    integer NOT NULL,
            at      timestamptz NOT NULL,
            subject text NOT NULL,
            counts  bigint[] NOT NULL,
            PRIMARY KEY (step, at, subject)
        ) WITH (fillfactor = 70)
    """)


def downgrade() -> None:
    op.execute("DROP TABLE kernel.metric_samples")
