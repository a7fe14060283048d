"""Which workers there are. Each holds a file in the data folder locked for as long as it lives.

The kernel drops the lock however the worker ends: nobody has to send signs of life, and nobody waits for them.
"""

from __future__ import annotations

import fcntl
import secrets
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from jobs.models import WorkerSandbox

_FOLDER = "workers"


def register(data_dir: Path, sandbox: WorkerSandbox) -> IO[str]:
    """Show a worker to all who share ``data_dir``, until the file that is returned is closed or its process ends."""
    folder = data_dir / _FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    present(data_dir)  # sweeps what others have left
    temporary = folder / secrets.token_hex(8)
    file = temporary.open("x", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(sandbox.model_dump_json())
    file.flush()
    temporary.rename(temporary.with_suffix(".json"))  # never seen without its lock
    return file


def present(data_dir: Path) -> tuple[WorkerSandbox, ...]:
    """Return the workers that live now and say so in words known here; the files of the dead are removed."""
    found = []
    for path in sorted((data_dir / _FOLDER).glob("*.json")):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # another may remove it at the same time
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                with suppress(ValidationError):  # a later version may know more layers
                    found.append(WorkerSandbox.model_validate_json(file.read()))
            else:
                path.unlink()
    return tuple(found)
