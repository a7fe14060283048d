"""``python -m worker.sandbox.probe TASK_DIR``: confine a process as intake is confined, and say what came of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from pydantic import TypeAdapter

from jobs.models import SandboxLayer
from worker.process import die_with_parent
from worker.sandbox.confine import confine
from worker.task import PREPARED_FOLDER, TASK_FILE, IntakeLimits

_LAYERS = TypeAdapter(tuple[SandboxLayer, ...])
_LOAD = "--load"
_SECONDS = 120


class SelfTestFailedError(Exception):
    """A process that confines itself does not get to its end, so that intake would not, either."""


def probe(*, load: bool = False) -> tuple[SandboxLayer, ...]:
    """Try in a child process what the sandbox denies.

    Args:
        load: Load PyTorch and the parsers in the sandbox, too, as intake does; takes seconds.

    Raises:
        SelfTestFailedError: The child did not come to its end; the message holds the last that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "worker.sandbox.probe", folder, *([_LOAD] if load else [])]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)  # noqa: S603 - our own
        except subprocess.TimeoutExpired as error:
            raise SelfTestFailedError(f"the self-test of the sandbox did not end in {_SECONDS} s") from error
    if ended.returncode:
        said = ended.stderr.strip().rpartition("\n")[2]
        raise SelfTestFailedError(f"the self-test of the sandbox ended with status {ended.returncode}: {said}")
    return _LAYERS.validate_json(ended.stdout)


def main() -> None:
    """Confine this process to the folder that is named, and print the layers as JSON."""
    die_with_parent()
    folder, load = Path(sys.argv[1]), _LOAD in sys.argv
    prepared, outside = folder / PREPARED_FOLDER, folder / TASK_FILE
    prepared.mkdir()
    outside.touch()
    layers = confine(IntakeLimits(), readable=(), writable=prepared, outside=outside)
    if load:
        import_module("worker.inspection")
    sys.stdout.write(_LAYERS.dump_json(layers).decode())


if __name__ == "__main__":
    main()
