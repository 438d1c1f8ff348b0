"""Each hand-over of an e-mail is counted, not each job; none is counted before."""

from alembic import op

revision = "0021_mail_by_hand_over"
down_revision = "0020_endpoint_calls"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobs.mail_sends ADD COLUMN IF NOT EXISTS is_open boolean NOT NULL DEFAULT false")
    # What the code before reserved for messages that still wait.
    op.execute("DELETE FROM jobs.mail_sends WHERE send_at > now()")
    op.execute("""
        -- No release has the table.
        -- squawk-ignore ban-drop-constraint
        ALTER TABLE jobs.mail_sends DROP CONSTRAINT mail_sends_pkey
    """)
    op.execute("""
        -- The table holds a day of e-mails, and only workers write to it.
        -- squawk-ignore constraint-missing-not-valid,adding-serial-primary-key-field
        ALTER TABLE jobs.mail_sends ADD CONSTRAINT mail_sends_pkey PRIMARY KEY (job_id, send_at)
    """)


def downgrade() -> None:
    op.execute("DELETE FROM jobs.mail_sends")
    op.execute("ALTER TABLE jobs.mail_sends DROP CONSTRAINT mail_sends_pkey")
    op.execute("ALTER TABLE jobs.mail_sends ADD CONSTRAINT mail_sends_pkey PRIMARY KEY (job_id)")
    op.execute("ALTER TABLE jobs.mail_sends DROP COLUMN is_open")
