"""Redis and PostgreSQL as they are installed, each on a free port and in a folder that goes with the block."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen, run

import psycopg
import redis

from benchmarks.load.service import wait_for

START_SECONDS = 30.0


@contextmanager
def redis_server() -> Iterator[str]:
    """Start Redis, which keeps nothing on disk; yields its URL."""
    port = _free_port()
    command = [_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]

    def answers() -> bool:
        try:
            with redis.Redis(port=port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    with _running(command, end_with=signal.SIGTERM):
        wait_for(answers, START_SECONDS)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Start PostgreSQL with an empty cluster and its own defaults, ``fsync`` included; yields the URL of a database."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="medic-postgresql-") as folder:
        user = _unprivileged_user(Path(folder))
        data = f"{folder}/data"
        make = [_program("initdb"), "-D", data, "-U", "medic", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        run(make, check=True, stdout=DEVNULL, cwd=folder, user=user)  # noqa: S603 - an installed program, no shell
        where = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        url = f"postgresql://medic@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                with psycopg.connect(url):
                    return True
            except psycopg.OperationalError:
                return False

        command = [_program("postgres"), "-D", data, "-p", str(port), *where]
        with _running(command, end_with=signal.SIGINT, cwd=folder, user=user):
            wait_for(answers, START_SECONDS)
            yield url


def _program(name: str) -> str:
    places = [*os.get_exec_path(), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    if found := shutil.which(name, path=os.pathsep.join(places)):
        return found
    raise FileNotFoundError(f"{name} is not installed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged_user(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root: hand the folder to someone else."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    shutil.chown(folder, user)
    return user


@contextmanager
def _running(
    command: Sequence[str], *, end_with: signal.Signals, cwd: str | None = None, user: str | None = None
) -> Iterator[None]:
    with Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, cwd=cwd, user=user) as process:  # noqa: S603
        try:
            yield
        finally:
            process.send_signal(end_with)
