"""Accounts of programs, which get access tokens with a secret of their own instead of logging in."""

from alembic import op

revision = "0028_service_accounts"
down_revision = "0027_login_codes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS identity.service_accounts (
            user_id uuid PRIMARY KEY,
            name text NOT NULL,
            scopes text[] NOT NULL,
            secret_hash bytea NOT NULL,
            old_secret_hash bytea,
            old_secret_expires_at timestamptz,
            created_by uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE identity.service_accounts")
