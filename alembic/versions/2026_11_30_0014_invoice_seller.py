"""An invoice keeps its seller as it was when it was issued; older ones have none."""

from alembic import op

revision = "0014_invoice_seller"
down_revision = "0012_mail_limits"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobs.invoices ADD COLUMN IF NOT EXISTS seller jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs.invoices DROP COLUMN seller")
