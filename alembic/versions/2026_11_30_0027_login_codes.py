"""Codes that are sent by e-mail to log in with, and how often each was guessed."""

from alembic import op

revision = "0027_login_codes"
down_revision = "0026_stream_tickets"
branch_labels = None
depends_on = None

_CHECK = "one_time_tokens_purpose_check"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE identity.one_time_tokens
            ADD COLUMN IF NOT EXISTS failures smallint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS known_failures smallint NOT NULL DEFAULT 0
    """)
    op.execute(f"""
        -- squawk-ignore ban-drop-constraint
        ALTER TABLE identity.one_time_tokens DROP CONSTRAINT IF EXISTS {_CHECK}
    """)
    op.execute(f"""
        ALTER TABLE identity.one_time_tokens ADD CONSTRAINT {_CHECK}
            CHECK (purpose IN ('verify_email', 'reset_password', 'change_email', 'log_in')) NOT VALID
    """)
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE identity.one_time_tokens VALIDATE CONSTRAINT {_CHECK}")


def downgrade() -> None:
    op.execute("DELETE FROM identity.one_time_tokens WHERE purpose = 'log_in'")
    op.execute(f"ALTER TABLE identity.one_time_tokens DROP CONSTRAINT {_CHECK}")
    op.execute(f"""
        ALTER TABLE identity.one_time_tokens ADD CONSTRAINT {_CHECK}
            CHECK (purpose IN ('verify_email', 'reset_password', 'change_email'))
    """)
    op.execute("ALTER TABLE identity.one_time_tokens DROP COLUMN failures, DROP COLUMN known_failures")
