"""API keys: ``mdk_<id>_<secret>``. The secret is shown once; only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from jobs.errors import InvalidKeyError
from jobs.tables import DEFAULT_TENANT

Scope = Literal["files:write", "jobs:write", "jobs:read", "admin"]
"""What a key lets its holder do: upload and delete files; start, cancel and delete jobs; read both; all of it."""

SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class KeyRecord:
    """What is stored of a key.

    Attributes:
        id: Part of the key, and no secret.
        sha256: Of the secret, as hexadecimal digits.
        tenant: Whose files and jobs its holder sees.
        scopes: What its holder may do.
        created: When it was made.
        expires: From when on it is no longer valid; None: never.
        revoked: Since when it is no longer valid, whatever it says; None: it was not revoked.
    """

    id: str
    sha256: str
    tenant: str = DEFAULT_TENANT
    scopes: tuple[Scope, ...] = ("admin",)
    created: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None

    def allows(self, scope: Scope) -> bool:
        """Say whether the holder may do what needs ``scope``."""
        return scope in self.scopes or "admin" in self.scopes


def new_key() -> str:
    """Make a key with 256 random bits."""
    return f"mdk_{secrets.token_hex(4)}_{secrets.token_hex(32)}"


def record_of(key: str, *, tenant: str = DEFAULT_TENANT, scopes: tuple[Scope, ...] = ("admin",)) -> KeyRecord:
    """Say what is to be stored of a key.

    Raises:
        InvalidKeyError: It does not look like a key.
    """
    parts = re.fullmatch(r"mdk_([0-9a-z]{1,32})_([0-9a-zA-Z_-]{43,128})", key)
    if parts is None:
        raise InvalidKeyError("an API key reads mdk_<id>_<secret>; make one with `medic keys create`")
    return KeyRecord(parts[1], hashlib.sha256(parts[2].encode()).hexdigest(), tenant, scopes)


def verify(key: str, record: KeyRecord) -> bool:
    """Say whether ``key`` is the one that was stored; how long that takes tells nothing of the secret."""
    try:
        given = record_of(key)
    except InvalidKeyError:
        return False
    same_id = hmac.compare_digest(given.id, record.id)
    return hmac.compare_digest(given.sha256, record.sha256) and same_id
