"""Settings of every process, read once from ``MEDIC_*`` environment variables. A malformed value stops the start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.models import SandboxMode

MOST_DAYS = 36_500
"""A century: no time that is stored comes near what a date can hold."""


class Settings(BaseSettings):
    """Everything has a default; one machine needs no configuration."""

    model_config = SettingsConfigDict(
        env_prefix="MEDIC_", frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )

    data_dir: Path = Path("~/.local/share/medic")
    database_url: SecretStr | None = Field(default=None, description="SQLAlchemy URL; None: SQLite under data_dir.")
    broker_url: SecretStr | None = Field(
        default=None, description="Redis URL for Celery; None: a worker polls the job table."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text: for people; json: one object a line, for machines."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: SecretStr | None = Field(
        default=None, description="The one API key; None: made at the first start, printed once, stored as a hash."
    )
    upload_limit_bytes: int = Field(default=4 * 1024**3, gt=0)
    multipart_limit_bytes: int = Field(default=64 * 1024**2, gt=0)
    queue_limit: int = Field(default=1000, gt=0, description="Jobs that may wait; one more is refused with 503.")
    tenant_queue_limit: int | None = Field(
        default=None,
        gt=0,
        description="Jobs of one tenant that may wait; one more is refused with 429. None: all.",
    )
    tenant_bytes_limit: int | None = Field(
        default=None,
        gt=0,
        description="Bytes of one tenant's files together; more is refused with 429. None: all.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        gt=0,
        description="Of one API key, at one API process; more is refused with 429. None: all.",
    )
    lease_seconds: float = Field(default=60.0, gt=0)
    sweep_seconds: float = Field(default=5.0, gt=0)
    poll_seconds: float = Field(default=0.5, gt=0)
    announce_again_seconds: float = Field(default=30.0, gt=0)
    stall_seconds: float = Field(default=1800.0, gt=0, description="A child without any progress for so long is ended.")
    stop_grace_seconds: float = Field(
        default=10.0, ge=0, description="How long a worker that has to end waits for its job's next checkpoint."
    )
    intake_seconds: float = Field(default=1800.0, gt=0, description="Time limit of the intake child.")
    deadline_seconds: int = Field(
        default=24 * 3600,
        gt=0,
        le=MOST_DAYS * 24 * 3600,
        description="Of a job that states none, from its creation.",
    )
    blob_grace_seconds: float = Field(
        default=3600.0,
        ge=300,
        description="Bytes that no record names are removed when older; more than an upload may be silent for.",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        le=MOST_DAYS,
        description="Results of jobs, and files that none of these jobs names; None: kept for ever.",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the trainer; None: all cores.")
    sandbox: SandboxMode = Field(
        default="auto",
        description="Of the process that reads what users sent. auto: what the kernel gives; strict: all, or no start.",
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")

    @field_validator("api_key")
    @classmethod
    def _without_white_space(cls, value: SecretStr | None) -> SecretStr | None:
        return value and SecretStr(value.get_secret_value().strip())

    @field_validator("database_url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        from sqlalchemy import make_url  # settings are read also where there is no database
        from sqlalchemy.exc import ArgumentError

        try:
            if re.match(r"(sqlite|postgresql)(\+|$)", make_url(value.get_secret_value()).drivername):
                return value
        except (ArgumentError, ValueError):  # which may quote the URL, and so its password
            pass
        raise ValueError("not the URL of a SQLite or PostgreSQL database: postgresql+psycopg://user:password@host/name")

    @field_validator("broker_url")
    @classmethod
    def _can_be_read(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            url = urlsplit(value.get_secret_value())
            is_whole = url.hostname and url.port != 0 and re.fullmatch(r"/?\d*", url.path)
            if url.scheme in {"redis", "rediss"} and is_whole:
                return value
        except ValueError:  # as above
            pass
        raise ValueError("not the URL of a Redis: redis://:password@host:6379/0, or rediss://… for TLS")

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()


def faults(error: ValidationError) -> str:
    """Say what is wrong with which setting, without its value, which may be a password."""
    return "; ".join(f"MEDIC_{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
