"""API keys and the command that makes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.__main__ import main
from jobs.errors import InvalidKeyError
from jobs.keys import new_key, record_of, verify
from jobs.settings import Settings
from jobs.store import open_store


def test_a_new_key_holds_256_random_bits_and_only_their_hash_is_kept() -> None:
    key = new_key()
    prefix, key_id, secret = key.split("_")
    assert (prefix, len(bytes.fromhex(secret))) == ("mdk", 32)
    record = record_of(key)
    assert (record.id, record.sha256) == (key_id, hashlib.sha256(secret.encode()).hexdigest())
    assert secret not in repr(record)
    assert new_key() != key


def test_only_the_whole_key_is_accepted() -> None:
    key, other = new_key(), new_key()
    record = record_of(key)
    assert verify(key, record)
    swapped = "_".join(["mdk", other.split("_")[1], key.split("_")[2]])
    for wrong in (other, swapped, key[:-1], key + "0", key.upper(), key + "\n", "", "Bearer " + key, "mdk__", "é" * 80):
        assert not verify(wrong, record)


@pytest.mark.parametrize("text", ["", "hunter2", "mdk_1_short", "mdk_" + "a" * 64, "sk_1_" + "a" * 64])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidKeyError, match="mdk_<id>_<secret>"):
        record_of(text)


def test_the_command_prints_the_key_once_and_replaces_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIC_DATA_DIR", str(tmp_path))
    first, second = (CliRunner().invoke(main, ["key"], catch_exceptions=False).stdout.strip() for _ in range(2))
    store = open_store(Settings())
    record = store.key_digest()
    store.close()
    assert record is not None
    assert verify(second, record)
    assert not verify(first, record)
    database = b"".join(path.read_bytes() for path in tmp_path.glob("medic.sqlite3*"))
    assert record.sha256.encode() in database
    assert second.split("_")[2].encode() not in database
