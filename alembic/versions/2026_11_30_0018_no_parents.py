"""Jobs have no parents: no release has written or read the column, and a chain of jobs is kept in their arguments."""

from alembic import op

revision = "0018_no_parents"
down_revision = "0017_factor_epochs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- No release names it, so that none misses it.
        -- squawk-ignore ban-drop-column
        ALTER TABLE jobs.jobs DROP COLUMN IF EXISTS parent_id
    """)


def downgrade() -> None:
    op.execute("ALTER TABLE jobs.jobs ADD COLUMN parent_id uuid")
