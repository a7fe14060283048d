"""The first tables: files, jobs with their inputs, metadata and artifacts, and one API key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all of them."""
    op.create_table(
        "files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("inspection", sa.JSON),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("started", sa.BigInteger),
        sa.Column("finished", sa.BigInteger),
        sa.Column("deadline", sa.BigInteger, nullable=False),
        sa.Column("announced", sa.BigInteger),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text),
        sa.Column("progress", sa.JSON),
        sa.Column("checkpoint_sha256", sa.Text),
        sa.Column("checkpoint_epoch", sa.Integer),
        sa.Column("num_classes", sa.Integer),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("summary", sa.JSON),
    )
    op.create_index("jobs_by_status", "jobs", ["status", "id"])
    op.create_table(
        "job_inputs",
        _of_job(),
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("file_id", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("format", sa.Text),
        sa.Column("samples", sa.Integer),
    )
    op.create_index("ix_job_inputs_file_id", "job_inputs", ["file_id"])
    op.create_index("ix_job_inputs_sha256", "job_inputs", ["sha256"])
    op.create_table(
        "job_metadata",
        _of_job(),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("job_metadata_by_pair", "job_metadata", ["key", "value"])
    op.create_table(
        "artifacts",
        _of_job(),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
    )
    op.create_table(
        "api_keys", sa.Column("id", sa.Text, primary_key=True), sa.Column("sha256", sa.Text, nullable=False)
    )


def _of_job() -> sa.Column[str]:
    return sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


def downgrade() -> None:
    """Drop all of them."""
    for table in ("api_keys", "artifacts", "job_metadata", "job_inputs", "jobs", "files"):
        op.drop_table(table)
