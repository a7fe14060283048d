"""``python -m medic_client.supervise``: the API and a worker as children that are kept running until this process ends.

The children die with it, however it ends. Their logs go to stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

SERVICE_FAILED = 5
"""The exit code of a service that does not stay up."""

_LOOK_SECONDS = 0.2
_RESTART_AFTER_SECONDS = 1.0
_GRACE_SECONDS = 20.0  # a worker lets its child leave a checkpoint first
_YOUNG_SECONDS = 20.0
_FAILED_STARTS = 3

API = ("-m", "api")
POLLING_WORKER = ("-m", "worker")
CELERY_WORKER = (
    *("-m", "celery", "-A", "worker.tasks", "worker", "-c", "1", "--pool", "prefork", "--loglevel", "INFO"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)


class GaveUpError(Exception):
    """A program ends by itself again and again right after its start."""


def worker_arguments(environment: Mapping[str, str]) -> Sequence[str]:
    """Return how to start a worker: with Celery where there is a broker, else one that polls the job table."""
    return CELERY_WORKER if environment.get("MEDIC_BROKER_URL") else POLLING_WORKER


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str], stderr: int | None = None
) -> subprocess.Popen[str]:
    """Start this Python with ``arguments`` as a child that dies with this thread.

    The terminal's Ctrl-C does not reach it. What it says on stdout goes to stderr: stdout is for data.
    """
    tied = (sys.executable, "-m", "medic_client.tied", str(os.getpid()), sys.executable, *arguments)
    return subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
        tied,
        env={**environment, "PYTHONSAFEPATH": "1"},  # a folder named worker where the command runs is not the worker
        stdin=subprocess.DEVNULL,
        stdout=2 if stderr is None else subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        process_group=0,
    )


def end(children: Sequence[subprocess.Popen[str]]) -> None:
    """Ask children to end, and kill with their process group those that have not after a grace."""
    for child in children:
        child.terminate()
    last_moment = time.monotonic() + _GRACE_SECONDS
    for child in children:
        try:
            child.wait(timeout=max(0.0, last_moment - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@dataclass
class _Kept:
    """A program and its present child."""

    arguments: Sequence[str]
    child: subprocess.Popen[str]
    started: float = field(default_factory=time.monotonic)
    failed_starts: int = 0

    def look(self) -> None:
        """Start the program anew when its child has ended.

        Being killed never counts as a failed start, however often it happens.
        """
        status = self.child.poll()
        if status is None:
            return
        _say(f"{' '.join(self.arguments[1:])} ended with status {status}")
        young = time.monotonic() - self.started < _YOUNG_SECONDS
        self.failed_starts = self.failed_starts + 1 if young and status >= 0 else 0
        if self.failed_starts == _FAILED_STARTS:
            raise GaveUpError(f"{' '.join(self.arguments[1:])} does not stay up")
        time.sleep(_RESTART_AFTER_SECONDS)
        self.child, self.started = start(self.arguments, environment=os.environ), time.monotonic()


def supervise(*programs: Sequence[str]) -> None:
    """Keep programs running until SIGTERM or SIGINT, then end them.

    Raises:
        GaveUpError: One of them does not stay up.
    """
    with sigterm_interrupts():
        kept: list[_Kept] = []
        try:
            kept += [_Kept(arguments, start(arguments, environment=os.environ)) for arguments in programs]
            while True:
                for program in kept:
                    program.look()
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            _say("ending")
        finally:
            end([program.child for program in kept])


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that children are ended in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    sys.stderr.write(f"medic serve: {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Run API and worker, both configured by ``MEDIC_*``."""
    try:
        supervise(API, worker_arguments(os.environ))
    except GaveUpError as error:
        _say(str(error))
        sys.exit(SERVICE_FAILED)


if __name__ == "__main__":
    main()
