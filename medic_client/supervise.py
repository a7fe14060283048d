"""``python -m medic_client.supervise``: the API and a worker as children that are kept running until this process ends.

The children die with it, however it ends. Their logs go to stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs import logs

log = logging.getLogger("medic")

SERVICE_FAILED = 5
"""The exit code of a service that does not stay up."""

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits after failed starts, one after the other; one more failure is the last. After any other end the first holds."""

_LOOK_SECONDS = 0.2
_YOUNG_SECONDS = 20.0
_STOP_GRACE_SECONDS = 10.0
_MARGIN_SECONDS = 10.0

API = ("-m", "api")
POLLING_WORKER = ("-m", "worker")
CELERY_WORKER = (
    *("-m", "celery", "--quiet", "-A", "worker.tasks", "worker", "-c", "1", "--pool", "prefork", "--loglevel", "INFO"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)


class GaveUpError(Exception):
    """A program ends by itself again and again right after its start, or its settings do not hold."""


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


def stop_grace(environment: Mapping[str, str]) -> float:
    """Return the seconds that a service may take to end: a worker first waits for a checkpoint of its job."""
    try:
        return float(environment.get("MEDIC_STOP_GRACE_SECONDS", _STOP_GRACE_SECONDS)) + _MARGIN_SECONDS
    except ValueError:  # which the service itself refuses
        return _MARGIN_SECONDS


def end(children: Sequence[subprocess.Popen[str]], *, grace_seconds: float) -> None:
    """Ask children to end, and kill with their process group those that have not after the grace."""
    for child in children:
        child.terminate()
    last_moment = time.monotonic() + grace_seconds
    for child in children:
        try:
            child.wait(timeout=max(0.0, last_moment - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@dataclass
class _Kept:
    """A program, and its present child or when the next one starts."""

    arguments: Sequence[str]
    child: subprocess.Popen[str]
    started: float = field(default_factory=time.monotonic)
    failed_starts: int = 0
    next_start: float | None = None

    def look(self) -> None:
        """Start the program anew some time after its child has ended.

        Raises:
            GaveUpError: That will not help.
        """
        now = time.monotonic()
        if self.next_start is None:
            if (status := self.child.poll()) is not None:
                self.next_start = now + self._wait_after(status, young=now - self.started < _YOUNG_SECONDS)
        elif now >= self.next_start:
            self.child, self.started, self.next_start = start(self.arguments, environment=os.environ), now, None

    def _wait_after(self, status: int, *, young: bool) -> float:
        """Being killed never counts as a failed start, however often it happens."""
        name = " ".join(self.arguments[1:])
        log.warning("%s ended with status %d", name, status)
        self.failed_starts = self.failed_starts + 1 if young and status >= 0 else 0
        if status == os.EX_CONFIG or self.failed_starts > len(RETRY_SECONDS):
            raise GaveUpError(f"{name} does not stay up")
        return RETRY_SECONDS[max(self.failed_starts - 1, 0)]


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
            log.info("ending")
        finally:
            end([program.child for program in kept], grace_seconds=stop_grace(os.environ))


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that children are ended in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Run API and worker, both configured by ``MEDIC_*``."""
    logs.configure()
    try:
        supervise(API, worker_arguments(os.environ))
    except GaveUpError as error:
        log.critical("%s", error)
        sys.exit(SERVICE_FAILED)


if __name__ == "__main__":
    main()
