"""The database says which life it leads, so that a restored backup is told from the state that was lost."""

from alembic import op

revision = "0011_incarnation"
down_revision = "0010_due_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # One row. `place` says where the row was when it was last looked at: a dump that is restored lies elsewhere.
    op.execute("""
        CREATE TABLE kernel.incarnation (
            id          uuid NOT NULL DEFAULT gen_random_uuid(),
            place       text,
            restored_at timestamptz,
            is_only     boolean NOT NULL DEFAULT true,
            PRIMARY KEY (is_only),
            CONSTRAINT incarnation_is_only_check CHECK (is_only)
        )
    """)
    op.execute("INSERT INTO kernel.incarnation DEFAULT VALUES")


def downgrade() -> None:
    op.execute("DROP TABLE kernel.incarnation")
