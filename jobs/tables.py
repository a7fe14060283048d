"""The tables. Times are integer milliseconds since the epoch by the database's clock; SQLite loses time zones."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.types import TypeDecorator


class PlainText(TypeDecorator[str]):
    """Text without NUL and lone surrogates, which databases refuse; each becomes a mark that no stored name equals."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  SQLAlchemy's signature
        """Replace what cannot be stored, also in what is looked up."""
        return value and value.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


_JSON = JSON(none_as_null=True)

DEFAULT_TENANT = "default"
"""Whose everything is where nobody told tenants apart."""

VERSION = "0005"
"""Of the tables below: the last of ``jobs/migrations/versions``."""

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("id", PlainText, primary_key=True),
    Column("tenant", PlainText, nullable=False, server_default=DEFAULT_TENANT),
    Column("sha256", PlainText, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("purpose", PlainText, nullable=False),
    Column("filename", PlainText, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("inspection", _JSON),
    Index("files_by_age", "created"),
    Index("files_of_tenant", "tenant", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", PlainText, primary_key=True),
    Column("tenant", PlainText, nullable=False, server_default=DEFAULT_TENANT),
    Column("spec", _JSON, nullable=False),
    Column("status", PlainText, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("started", BigInteger),
    Column("finished", BigInteger),
    Column("deadline", BigInteger, nullable=False),
    Column("announced", BigInteger),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost", Integer, nullable=False, default=0),
    Column("crashes", Integer, nullable=False, default=0),
    Column("phase", PlainText),
    Column("progress", _JSON),
    Column("checkpoint_sha256", PlainText),
    Column("checkpoint_epoch", Integer),
    Column("num_classes", Integer),
    Column("warnings", _JSON, nullable=False, default=[]),
    Column("error", _JSON),
    Column("summary", _JSON),
    Column("expired", BigInteger),
    Index("jobs_by_end", "expired", "finished"),
    Index("jobs_by_status", "status", "id"),
    Index("jobs_of_tenant", "tenant", "id"),
    Index("jobs_of_tenant_by_status", "tenant", "status", "id"),
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("role", PlainText, primary_key=True),
    Column("file_id", PlainText, nullable=False, index=True),  # no foreign key: a finished job outlives its files
    Column("sha256", PlainText, nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("format", PlainText),
    Column("samples", Integer),
)

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("key", PlainText, primary_key=True),
    Column("value", PlainText, nullable=False),
    Index("job_metadata_by_pair", "key", "value"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", PlainText, primary_key=True),
    Column("sha256", PlainText, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", PlainText, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", PlainText, primary_key=True),
    Column("sha256", PlainText, nullable=False),
    Column("tenant", PlainText, nullable=False, server_default=DEFAULT_TENANT),
    Column("scopes", _JSON, nullable=False, server_default='["admin"]'),
    Column("created", BigInteger),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", PlainText, primary_key=True),
    Column("key", PlainText, primary_key=True),
    Column("fingerprint", PlainText, nullable=False),
    Column("token", PlainText, nullable=False),
    Column("created", BigInteger, nullable=False, index=True),
    Column("made", PlainText),
)


def version_of(connection: Connection) -> str | None:
    """Read which version the tables of a database are of; None where that was never written."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found
