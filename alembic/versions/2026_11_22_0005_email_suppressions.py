"""Addresses that a mail server refused for good, so that no mail is sent to them again.

What is stored is a keyed hash: the list cannot be read as one of addresses.
"""

from alembic import op

revision = "0005_email_suppressions"
down_revision = "0004_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE jobs.email_suppressions (
            address_hash bytea PRIMARY KEY,
            reason       text NOT NULL,
            created_at   timestamptz NOT NULL
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE jobs.email_suppressions")
