"""API keys and the command that makes them."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

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


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDIC_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_command_prints_a_key_once_and_keeps_its_hash(folder: Path) -> None:
    made = command("create", "--tenant", "birds", "--scope", "jobs:read", "--days", "1").stdout.strip()
    _, key_id, secret = made.split("_")
    store = open_store(Settings())
    record = store.find_key(key_id)
    store.close()
    assert record is not None
    assert verify(made, record)
    assert (record.tenant, record.scopes) == ("birds", ("jobs:read",))
    assert record.created is not None
    assert record.expires is not None
    assert record.expires - record.created == timedelta(days=1)
    listed = command("list").stdout
    assert json.loads(listed)["tenant"] == "birds"
    database = b"".join(path.read_bytes() for path in folder.glob("medic.sqlite3*"))
    assert record.sha256.encode() in database
    assert record.sha256 not in listed
    assert secret.encode() not in database + listed.encode()


@pytest.mark.parametrize("days", ["0", "36501", "9" * 20])
def test_no_key_is_made_that_ends_when_no_date_can_say(folder: Path, days: str) -> None:
    assert command("create", "--days", days).exit_code == 2
    assert list(folder.iterdir()) == []
    assert command("create", "--days", "36500").exit_code == 0
    assert command("list").exit_code == 0


def test_a_revoked_key_lets_in_no_more_and_the_others_do(folder: Path) -> None:
    assert folder.exists()
    first, second = (command("create").stdout.strip().split("_")[1] for _ in range(2))
    assert command("revoke", first).exit_code == 0
    store = open_store(Settings())
    assert (store.find_key(first), store.find_key(second) is None) == (None, False)
    store.close()
    assert [json.loads(line)["revoked"] is None for line in command("list").stdout.splitlines()] == [False, True]
    assert "nobody" in command("revoke", "nobody").stderr
