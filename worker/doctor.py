"""``python -m worker.doctor``: look at all that a worker on this machine needs; JSON on stdout. It changes nothing.

The data folder is the exception: a file is made in it, and removed.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pysqlite3.dbapi2 as sqlite
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from jobs.database import SAFE_WAL, database_url, engine_of, reading
from jobs.errors import InvalidKeyError, JobsError
from jobs.keys import record_of
from jobs.models import Check, CheckState, Diagnosis, LayerState
from jobs.queue import CeleryQueue
from jobs.schema import check_version
from jobs.settings import Settings, faults
from jobs.store import JobStore
from worker.sandbox.probe import SelfTestFailedError, probe

_GIB = 1024**3


def examine() -> Iterator[Check]:
    """Look at one thing after the other; with settings that do not hold, only at what needs none."""
    yield Check(name="python", state="ok", detail=f"{platform.python_version()}, MEDIC {version('medic')}")
    yield _sqlite()
    try:
        settings = Settings()
    except ValidationError as error:
        yield Check(name="settings", state="broken", detail=faults(error))
        return
    yield Check(name="settings", state="ok", detail="they hold")
    yield _api_key(settings)
    yield _data_folder(settings)
    yield _database(settings)
    yield _retention(settings)
    yield _broker(settings)
    yield _device(settings)
    yield from _sandbox(settings)


def _sqlite() -> Check:
    if sqlite.sqlite_version_info >= SAFE_WAL:
        return Check(name="sqlite", state="ok", detail=sqlite.sqlite_version)
    return Check(name="sqlite", state="note", detail=f"{sqlite.sqlite_version}: too old for WAL, so it writes slower")


def _api_key(settings: Settings) -> Check:
    if settings.api_key is None:
        return Check(name="api key", state="ok", detail="not set: those that `medic keys` makes count")
    try:
        key_id = record_of(settings.api_key.get_secret_value()).id
    except InvalidKeyError as error:
        return Check(name="api key", state="broken", detail=f"MEDIC_API_KEY: {error}")
    return Check(name="api key", state="ok", detail=f"MEDIC_API_KEY is the only one that counts: {key_id}")


def _data_folder(settings: Settings) -> Check:
    folder = settings.data_dir
    if not folder.exists():
        return Check(name="data folder", state="note", detail=f"{folder} does not exist yet; the service makes it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name="data folder", state="broken", detail=f"{folder}: {error.strerror}")
    scarce = free < settings.upload_limit_bytes
    note = f", less than one upload may have ({settings.upload_limit_bytes / _GIB:.1f} GiB)" if scarce else ""
    detail = f"{folder} can be written, {free / _GIB:.1f} GiB free{note}"
    return Check(name="data folder", state="note" if scarce else "ok", detail=detail)


def _database(settings: Settings) -> Check:
    url = database_url(settings)
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database and not Path(url.database).exists():
        return Check(
            name="database", state="note", detail="SQLite, whose file does not exist yet; the service makes it"
        )
    engine = engine_of(url)
    try:
        JobStore(engine).check()
        with reading(engine) as connection:
            check_version(connection)
    except JobsError as error:
        return Check(name="database", state="broken", detail=f"{backend}: {error}")
    except DBAPIError as error:
        return Check(name="database", state="broken", detail=f"{backend}: {error.orig}")
    finally:
        engine.dispose()
    return Check(name="database", state="ok", detail=f"{backend} answers")


def _retention(settings: Settings) -> Check:
    days = settings.retention_days
    kept = "all is kept for ever" if days is None else f"results and files are kept for {days:g} days"
    return Check(name="retention", state="ok", detail=kept)


def _broker(settings: Settings) -> Check:
    if settings.broker_url is None:
        return Check(name="broker", state="ok", detail="none: workers poll the job table")
    try:
        CeleryQueue(settings.broker_url.get_secret_value()).waiting()
    except JobsError as error:
        return Check(name="broker", state="broken", detail=str(error))
    return Check(name="broker", state="ok", detail="it answers")


def _device(settings: Settings) -> Check:
    import torch  # last, since it takes seconds

    from worker.trainer import choose_device

    threads = settings.threads or len(os.sched_getaffinity(0))
    device = choose_device(settings.device)
    named = f"PyTorch {torch.__version__} on {device} ({settings.device}), {threads} CPU threads"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return Check(name="device", state="broken", detail=f"{named}: {error}")
    return Check(name="device", state="ok", detail=named)


def _sandbox(settings: Settings) -> Iterator[Check]:
    try:
        layers = probe(load=True)
    except SelfTestFailedError as error:
        yield Check(name="sandbox", state="broken", detail=str(error))
        return
    yield Check(name="sandbox", state="ok", detail=f"{settings.sandbox}; PyTorch and the parsers load in it")
    unavailable: CheckState = "broken" if settings.sandbox == "strict" else "note"
    states: dict[LayerState, CheckState] = {"active": "ok", "unavailable": unavailable, "broken": "broken"}
    for layer in layers:
        detail = f"{layer.state}: {layer.detail}"
        yield Check(name=f"sandbox: {layer.name}", state=states[layer.state], detail=detail)


def main() -> None:
    """Print every check."""
    sys.stdout.write(Diagnosis(checks=tuple(examine())).model_dump_json() + "\n")


if __name__ == "__main__":
    main()
