"""E-mails are counted by recipient and sender; only "no such mailbox" keeps an address from being written to."""

from alembic import op

revision = "0012_mail_limits"
down_revision = "0011_incarnation"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS jobs.mail_sends (
            job_id uuid NOT NULL,
            recipient_hash bytea NOT NULL,
            purpose text NOT NULL,
            sender_id uuid,
            send_at timestamptz NOT NULL,
            CONSTRAINT mail_sends_pkey PRIMARY KEY (job_id)
        )
    """)
    op.execute(
        "CREATE INDEX IF NOT EXISTS mail_sends_recipient_idx ON jobs.mail_sends (recipient_hash, purpose, send_at DESC)"
    )
    op.execute("CREATE INDEX IF NOT EXISTS mail_sends_sender_idx ON jobs.mail_sends (sender_id, send_at DESC)")
    op.execute("CREATE INDEX IF NOT EXISTS mail_sends_send_at_idx ON jobs.mail_sends (send_at)")
    # A purge clears what an administrator's acts on other accounts say of where they came from.
    with op.get_context().autocommit_block():
        # A run that was broken off leaves an index that is not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS identity.security_events_actor_idx")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS security_events_actor_idx
            ON identity.security_events (actor_id) WHERE actor_id <> user_id
        """)
    # A bare 5xx of an older release said nothing about the address.
    op.execute(r"DELETE FROM jobs.email_suppressions WHERE reason !~ ' 5\.1\.(1|2|3|6|10)$'")


def downgrade() -> None:
    op.execute("DROP INDEX identity.security_events_actor_idx")
    op.execute("DROP TABLE jobs.mail_sends")
