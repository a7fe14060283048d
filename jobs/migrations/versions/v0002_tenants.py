"""Tenants own files, jobs and API keys; keys have scopes and end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Give all that is there to the tenant ``default``, whose keys may do everything."""
    for table in ("files", "jobs", "api_keys"):
        op.add_column(table, sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
    op.create_index("files_of_tenant", "files", ["tenant", "id"])
    op.create_index("jobs_of_tenant", "jobs", ["tenant", "id"])
    op.add_column("api_keys", sa.Column("scopes", sa.JSON, nullable=False, server_default='["admin"]'))
    for name in ("created", "expires", "revoked"):
        op.add_column("api_keys", sa.Column(name, sa.BigInteger))


def downgrade() -> None:
    """Forget whose they are. A key that has ended would let in again, and goes."""
    op.execute("DELETE FROM api_keys WHERE revoked IS NOT NULL OR expires IS NOT NULL")
    for name in ("revoked", "expires", "created", "scopes", "tenant"):
        op.drop_column("api_keys", name)
    for table in ("jobs", "files"):
        op.drop_index(f"{table}_of_tenant", table)
        op.drop_column(table, "tenant")
