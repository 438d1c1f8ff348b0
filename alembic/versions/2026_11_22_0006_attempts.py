"""Attempts: one row for each run of a job that failed, so that a job that succeeded in the end still tells why late.

A run that succeeds writes nothing here. The rows go with their job.
"""

from alembic import op

revision = "0006_attempts"
down_revision = "0005_email_suppressions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE jobs.attempts (
            job_id     uuid NOT NULL REFERENCES jobs.jobs (id) ON DELETE CASCADE,
            n          integer NOT NULL,
            started_at timestamptz NOT NULL,
            ended_at   timestamptz NOT NULL,
            outcome    text NOT NULL,
            error      jsonb NOT NULL,
            worker_id  text NOT NULL,
            PRIMARY KEY (job_id, n),
            CONSTRAINT attempts_outcome_check CHECK (outcome IN ('retried', 'failed', 'cancelled', 'lost'))
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE jobs.attempts")
