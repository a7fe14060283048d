"""A tenant's jobs of one status are found without a look at all of its others."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Index them."""
    op.create_index("jobs_of_tenant_by_status", "jobs", ["tenant", "status", "id"])


def downgrade() -> None:
    """Look at all again."""
    op.drop_index("jobs_of_tenant_by_status", "jobs")
