"""Real servers, each on a free port and in a folder of its own, gone when the block ends."""

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
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

START_SECONDS = 30


class RunningRedis:
    """A Redis that may hang, be killed, and come back empty on its port."""

    def __init__(self, url: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.url = url
        self._start = start
        self._process = start()

    def hang(self) -> None:
        """Answer nobody, and keep the connections."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the hanging."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; it kept nothing on disk."""
        self._process.kill()
        self._process.wait()

    def start_again(self) -> None:
        """Start it after it was killed."""
        self._process = self._start()

    def stop(self) -> None:
        """End it."""
        _end(self._process, signal.SIGTERM)


class RunningPostgresql:
    """A PostgreSQL that can be started anew on its port and its data."""

    def __init__(self, url: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.url = url
        self._start = start
        self._process = start()

    def restart(self, *, down_seconds: float = 0.0) -> None:
        """End it, whoever is connected, and start it again."""
        self.stop()
        time.sleep(down_seconds)
        self._process = self._start()

    def stop(self) -> None:
        """End it."""
        _end(self._process, signal.SIGINT)


class NotInstalledError(Exception):
    """A program is not there."""


def program(name: str) -> Path:
    """Find a server's program.

    Raises:
        NotInstalledError: It is nowhere.
    """
    for folder in [*os.get_exec_path(), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise NotInstalledError(f"{name} is not installed")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def redis_server(port: int | None = None, *, password: str = "") -> Iterator[RunningRedis]:
    """Start Redis, without persistence; on a given port where one has to come back after it died."""
    port = port or free_port()
    command = [str(program("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--requirepass", password] if password else []

    def answers() -> bool:
        with redis.Redis(port=port, password=password or None) as client:
            return bool(client.ping())

    with tempfile.TemporaryDirectory(prefix="medic-redis-") as folder:

        def start() -> subprocess.Popen[bytes]:
            process = _start([*command, "--dir", folder])
            _wait(answers, process, redis.RedisError)
            return process

        running = RunningRedis(f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0", start)
        try:
            yield running
        finally:
            running.stop()


@contextmanager
def postgresql_server(*, durable: bool = False, password: str = "") -> Iterator[RunningPostgresql]:
    """Start PostgreSQL with an empty cluster; its ``url`` is that of the maintenance database, as a superuser.

    Args:
        durable: Whether commits wait for the disk, as they do where it matters.
        password: Of its superuser; empty: whoever comes is let in.
    """
    initdb, postgres, port = program("initdb"), program("postgres"), free_port()
    with tempfile.TemporaryDirectory(prefix="medic-postgresql-") as name:
        folder = Path(name)
        user = _unprivileged_user(folder)
        data = str(folder / "data")
        make = [str(initdb), "-D", data, "-U", "medic", "--encoding=UTF8", "--locale=C", "--no-sync"]
        make += ["--auth=scram-sha-256", "--pwfile=password"] if password else ["--auth=trust"]
        (folder / "password").write_text(password)
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, user=user)  # noqa: S603 - likewise
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        settings += [] if durable else ["-c", "fsync=off"]
        url = f"postgresql://medic{f':{password}' if password else ''}@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            with psycopg.connect(url):
                return True

        def start() -> subprocess.Popen[bytes]:
            process = _start([str(postgres), "-D", data, "-p", str(port), *settings], cwd=folder, user=user)
            _wait(answers, process, psycopg.OperationalError)
            return process

        running = RunningPostgresql(url, start)
        try:
            yield running
        finally:
            running.stop()


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


def _start(command: list[str], *, cwd: Path | None = None, user: str | None = None) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, cwd=cwd, user=user)  # noqa: S603 - servers found on PATH


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(signal.SIGCONT)  # a stopped one would not hear the next
    process.send_signal(number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
