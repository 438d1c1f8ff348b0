"""Passkeys: WebAuthn credentials that log a user in."""

from alembic import op

revision = "0029_passkeys"
down_revision = "0028_service_accounts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE IF NOT EXISTS identity.passkeys (
            user_id uuid NOT NULL,
            id uuid NOT NULL,
            credential_id bytea NOT NULL CONSTRAINT passkeys_credential_id_key UNIQUE,
            public_key bytea NOT NULL,
            sign_count bigint NOT NULL,
            name text NOT NULL,
            transports text[] NOT NULL,
            backed_up boolean NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            last_used_at timestamptz,
            PRIMARY KEY (user_id, id)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE identity.passkeys")
