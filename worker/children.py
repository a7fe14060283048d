"""Start one child process and watch it until it ends, or end it: cancel, lost lease, deadline, stall, stop."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import TypeAdapter, ValidationError

from jobs import logs
from worker.process import CHILD_ENVIRONMENT, PARENT_PID
from worker.task import Event

EVENTS_FD = "MEDIC_EVENTS_FD"
LONGEST_LINE = 64 * 1024
RELAY_SECONDS = 5.0

NO_ROOM_STATUS = 75
"""Exit status of a child that found no room on the disk (``EX_TEMPFAIL``)."""

Reason = Literal["ended", "cancelled", "lease_lost", "deadline", "stalled", "stopped", "unintelligible"]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


@dataclass(frozen=True)
class Ended:
    """How a child came to its end.

    Attributes:
        reason: ``ended`` by itself, or why it was killed.
        returncode: As ``subprocess`` gives it: negative for a signal.
    """

    reason: Reason
    returncode: int


@dataclass
class Watch:
    """Why a child would have to end, besides ending by itself.

    Attributes:
        deadline: By ``time.monotonic()``.
        stopping: Set when the worker has to end. The child then gets ``grace_seconds`` to reach a checkpoint.
        grace_seconds: How long a worker that has to end waits.
        safe: Set when a checkpoint was kept while ``stopping``: there is nothing left to wait for.
        cancelled: Set when a user asks for the end.
        lease_lost: Set when the job is no longer ours.
    """

    deadline: float
    stopping: threading.Event
    grace_seconds: float
    safe: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    lease_lost: threading.Event = field(default_factory=threading.Event)
    _stopping_since: float | None = None

    def reason_to_end(self, last_sign: float, stall_seconds: float) -> Reason | None:
        """Return why a child that last reported at ``last_sign`` has to end now, None if it may go on."""
        now = time.monotonic()
        if self.lease_lost.is_set():
            return "lease_lost"
        if self.cancelled.is_set():
            return "cancelled"
        if self.stopping.is_set():
            self._stopping_since = self._stopping_since or now
            if self.safe.is_set() or now > self._stopping_since + self.grace_seconds:
                return "stopped"
        if now > self.deadline:
            return "deadline"
        return "stalled" if now > last_sign + stall_seconds else None


def run_child(
    module: str,
    task_dir: Path,
    *,
    watch: Watch,
    stall_seconds: float,
    on_event: Callable[[Event], None] | None,
    poll_seconds: float = 0.1,
) -> Ended:
    """Run ``python -m module task_dir`` in a process group of its own, to its end or until ``watch`` says so.

    The child writes events as JSON lines to the descriptor that ``MEDIC_EVENTS_FD`` names; each is answered by a
    line on its standard input once ``on_event`` has returned, so that a child can wait until a checkpoint is safe.
    A child that says anything else there is ended. Without ``on_event`` there is no such descriptor: who parses
    untrusted files has nothing to report, and must have no way past its sandbox to a process that has none. When
    this process dies, however it dies, the kernel kills the child: it must be started by the thread that waits for
    it, since the kernel's signal follows that thread. It inherits the environment of this process but for all
    ``MEDIC_*``: the task says what a child has to know, and who parses untrusted files needs no key and no
    password. What it says on stdout and stderr is logged here, line by line.

    Args:
        module: Of this package.
        task_dir: Its only argument.
        watch: Looked at ten times a second.
        stall_seconds: Longest time without any event.
        on_event: Called for each event, in order; None for a child that reports none.
        poll_seconds: How often to look.
    """
    reading, writing = os.pipe()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MEDIC_")}
    environment = {**CHILD_ENVIRONMENT, **inherited, PARENT_PID: str(os.getpid())}
    with open(reading, "rb", buffering=0) as events:  # noqa: PTH123 - a descriptor, not a path
        with _started(module, task_dir, environment, writing, inherit=on_event is not None) as child:
            if on_event is None:
                reason = _await_end(child, watch, stall_seconds, poll_seconds)
            else:
                reason = _follow(child, events, watch, stall_seconds, on_event, poll_seconds)
            if reason != "ended":
                _kill(child)
            child.wait()
            _kill(child)  # whatever the child itself has left behind in its group
        return Ended(reason, child.returncode)


@contextmanager
def _started(
    module: str, task_dir: Path, environment: dict[str, str], writing: int, *, inherit: bool
) -> Iterator[subprocess.Popen[bytes]]:
    try:
        child = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", module, str(task_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment | ({EVENTS_FD: str(writing)} if inherit else {}),
            pass_fds=[writing] if inherit else [],
            process_group=0,
        )
    finally:
        os.close(writing)
    relay = threading.Thread(target=copy_context().run, args=(_relay, child.stdout, module), daemon=True)
    relay.start()
    try:
        yield child
    finally:
        if child.poll() is None:
            _kill(child)
        if child.stdin:
            child.stdin.close()
        child.wait()
        relay.join(RELAY_SECONDS)  # to the last word; who left the group and holds the pipe is not waited for


def _relay(said: IO[bytes], module: str) -> None:
    """Log what a child says: whatever its input made it say stays one line, and about its own job."""
    log = logging.getLogger(module)
    with said:
        while line := said.readline(LONGEST_LINE):
            level, message, exception = _understood(line)
            with logs.about(**exception):
                log.log(level, "%s", message)


def _understood(line: bytes) -> tuple[int, str, dict[str, str]]:
    """Read level, message and traceback of a line in our format; any other is all message."""
    try:
        entry = json.loads(line)
        level, message = logging.getLevelNamesMapping()[entry["level"]], entry["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return logging.INFO, line.decode(errors="replace").rstrip(), {}
    return level, str(message), {"exception": str(entry["exception"])} if "exception" in entry else {}


def _follow(
    child: subprocess.Popen[bytes],
    events: Any,
    watch: Watch,
    stall_seconds: float,
    on_event: Callable[[Event], None],
    poll_seconds: float,
) -> Reason:
    last_sign = time.monotonic()
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while True:
            if selector.select(poll_seconds):
                data = events.read(65536)
                if not data:  # every holder of the writing end is gone: the child has ended, or closed it and hangs
                    return _await_end(child, watch, stall_seconds, poll_seconds)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    try:
                        event = _EVENT.validate_json(line)
                    except ValidationError:
                        return "unintelligible"
                    on_event(event)
                    _answer(child)
                if len(pending) > LONGEST_LINE:
                    return "unintelligible"
                last_sign = time.monotonic()
            if reason := watch.reason_to_end(last_sign, stall_seconds):
                return reason


def _await_end(child: subprocess.Popen[bytes], watch: Watch, stall_seconds: float, poll_seconds: float) -> Reason:
    since = time.monotonic()
    while True:
        try:
            child.wait(poll_seconds)
        except subprocess.TimeoutExpired:
            if reason := watch.reason_to_end(since, stall_seconds):
                return reason
        else:
            return "ended"


def _answer(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is None:
        return
    try:
        child.stdin.write(b"ok\n")
        child.stdin.flush()
    except BrokenPipeError:
        return  # the child has just died; its exit status will say how


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody is left in the group


class Events:
    """The child's end: report to the supervisor and wait until it has heard."""

    def __init__(self) -> None:
        self._writing = int(os.environ[EVENTS_FD])

    def send(self, event: Event) -> None:
        """Send one event; returns once the supervisor has dealt with it.

        Raises:
            SystemExit: The supervisor is gone.
        """
        os.write(self._writing, event.model_dump_json().encode() + b"\n")
        if not sys.stdin.readline():
            raise SystemExit(1)
