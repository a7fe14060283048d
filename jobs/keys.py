"""API keys: ``mdk_<id>_<secret>``. The secret is shown once; only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from jobs.errors import InvalidKeyError


@dataclass(frozen=True)
class KeyRecord:
    """What is stored of a key: its id, and the SHA-256 of its secret as hexadecimal digits."""

    id: str
    sha256: str


def new_key() -> str:
    """Make a key with 256 random bits."""
    return f"mdk_{secrets.token_hex(4)}_{secrets.token_hex(32)}"


def record_of(key: str) -> KeyRecord:
    """Say what is to be stored of a key.

    Raises:
        InvalidKeyError: It does not look like a key.
    """
    parts = re.fullmatch(r"mdk_([0-9a-z]{1,32})_([0-9a-zA-Z_-]{43,128})", key)
    if parts is None:
        raise InvalidKeyError("an API key reads mdk_<id>_<secret>; make one with `python -m jobs key`")
    return KeyRecord(parts[1], hashlib.sha256(parts[2].encode()).hexdigest())


def verify(key: str, record: KeyRecord) -> bool:
    """Say whether ``key`` is the one that was stored; how long that takes tells nothing of the secret."""
    try:
        given = record_of(key)
    except InvalidKeyError:
        return False
    same_id = hmac.compare_digest(given.id, record.id)
    return hmac.compare_digest(given.sha256, record.sha256) and same_id
