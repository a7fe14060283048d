"""Real servers for tests, each on a free port and in a folder of its own, gone when the block ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

START_SECONDS = 30


@dataclass(frozen=True)
class RunningRedis:
    """A Redis that a test may stop, let hang or kill."""

    url: str
    process: subprocess.Popen[bytes]

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def program(name: str) -> Path:
    """Find a server's program; without it the test is skipped, or fails where ``CI=true``."""
    for folder in [*os.get_exec_path(), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed, and CI needs it")
    pytest.skip(f"{name} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def redis_server(port: int | None = None, *, password: str = "") -> Iterator[RunningRedis]:
    """Start Redis, without persistence; on a given port where one has to come back after it died."""
    port = port or free_port()
    command = [str(program("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--requirepass", password] if password else []
    with tempfile.TemporaryDirectory(prefix="medic-redis-") as folder, _running([*command, "--dir", folder]) as process:

        def answers() -> bool:
            with redis.Redis(port=port, password=password or None) as client:
                return bool(client.ping())

        _wait(answers, process, redis.RedisError)
        yield RunningRedis(f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0", process)


@contextmanager
def postgresql_server(*, password: str = "") -> Iterator[str]:
    """Start PostgreSQL with an empty cluster; yields the URL of its maintenance database, as a superuser."""
    initdb, postgres, port = program("initdb"), program("postgres"), free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medic-postgresql-")))
        user = _unprivileged_user(folder)
        data = str(folder / "data")
        make = [str(initdb), "-D", data, "-U", "medic", "--encoding=UTF8", "--locale=C", "--no-sync"]
        make += ["--auth=scram-sha-256", "--pwfile=password"] if password else ["--auth=trust"]
        (folder / "password").write_text(password)
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, user=user)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", f"unix_socket_directories={folder}"]
        command = [str(postgres), "-D", data, "-p", str(port), *settings]
        process = stack.enter_context(_running(command, cwd=folder, user=user, end_with=signal.SIGINT))
        url = f"postgresql://medic{f':{password}' if password else ''}@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            with psycopg.connect(url):
                return True

        _wait(answers, process, psycopg.OperationalError)
        yield url


def empty_database(url: str) -> str:
    """Remove every table from a PostgreSQL database."""
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


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
    command: list[str], *, cwd: Path | None = None, user: str | None = None, end_with: int = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, cwd=cwd, user=user) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)  # a stopped one would not hear the next
            process.send_signal(end_with)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(answers: Callable[[], bool], process: subprocess.Popen[bytes], not_yet: type[Exception]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if answers():
                return
        except not_yet:
            if process.poll() is not None or time.monotonic() > end:
                raise
        time.sleep(0.05)
