"""${message}.

The program one version older runs against this schema while the new version rolls out. So a migration only adds:
removing a column takes two releases, renaming one takes three. An index on a table that holds rows is made with
CONCURRENTLY inside `op.get_context().autocommit_block()`.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    op.execute("")


def downgrade() -> None:
    op.execute("")
