"""What reads untrusted files can do little else: each denial is tried where the kernel has it, each part by itself."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.models import Denial, SandboxLayer
from jobs.workers import present
from medic_client.supervise import CELERY_WORKER, POLLING_WORKER
from worker.sandbox import landlock, seccomp
from worker.sandbox.confine import lacking
from worker.sandbox.probe import SelfTestFailedError, probe
from worker.task import TASK_FILE

try:
    ABI, NO_LANDLOCK = landlock.abi(), ""
except OSError as error:
    ABI, NO_LANDLOCK = 0, str(error)

needs_landlock = pytest.mark.skipif(ABI == 0, reason=NO_LANDLOCK)
needs_scopes = pytest.mark.skipif(ABI < landlock.SCOPES_SINCE, reason=f"Landlock ABI {ABI} knows no scopes")

BY_LANDLOCK = {"reading", "writing"}
BY_OTHERS = {*get_args(Denial)} - BY_LANDLOCK


def ran(folder: Path, code: str, *, status: int = 0) -> str:
    """Run code in a process of its own and return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "FOLDER": str(folder)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status, ended.stderr
    return ended.stdout


TRIES = """
import ctypes, errno, fcntl, json, os, resource, socket, subprocess, sys, threading, time
from pathlib import Path
from worker.sandbox import landlock, seccomp
from worker.libc import forbid_new_privileges, syscall

def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

folder = Path(os.environ["FOLDER"])
own, given, secret = folder / "own", folder / "given", folder / "secret"
parent, program = os.getppid(), sys.executable
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    for name in ("given", "secret"):
        (tmp_path / name).write_text(name)
    return tmp_path


# --- Landlock by itself ----------------------------------------------------------------------------------------------

LANDLOCKED = f"""{TRIES}
listener = socket.create_server(("127.0.0.1", 0))
abstract = socket.socket(socket.AF_UNIX)
forbid_new_privileges()
landlock.restrict([(own, landlock.READ | landlock.WRITE), (given, landlock.READ), (folder / "missing", landlock.READ)])
"""


@needs_landlock
def test_landlock_leaves_what_is_granted_and_denies_other_files(folder: Path) -> None:
    code = f"""{LANDLOCKED}
(own / "a").write_text("1")
(own / "a").rename(own / "b")
(own / "b").write_text("2")
(own / "deeper").mkdir()
read, written, names = given.read_text(), (own / "b").read_text(), sorted(os.listdir(own))
(own / "b").unlink()
print(json.dumps([read, written, names, *map(tried, [
    secret.read_text, lambda: os.listdir(folder), lambda: given.write_text("x"), lambda: secret.write_text("x"),
    lambda: os.truncate(given, 0), secret.unlink, lambda: (folder / "new").write_text("x"), (folder / "new").mkdir,
    lambda: (own / "link").symlink_to(secret), lambda: os.mkfifo(own / "fifo"), lambda: os.link(given, own / "hard"),
    lambda: given.rename(own / "moved"), lambda: Path("/proc", str(parent), "environ").read_bytes(),
])]))"""
    read, written, names, *outcomes = json.loads(ran(folder, code))
    assert (read, written, names) == ("given", "2", ["b", "deeper"])
    assert set(outcomes) <= {"EACCES", "EXDEV", "EPERM"}, outcomes
    assert {path.name for path in folder.iterdir()} == {"own", "given", "secret"}
    assert (folder / "given").read_text() == "given"


@needs_landlock
def test_landlock_runs_no_program(folder: Path) -> None:
    code = f"{LANDLOCKED}\nprint(tried(lambda: subprocess.run([program, '--version'])))"
    assert ran(folder, code) == "EACCES\n"


@pytest.mark.skipif(ABI < landlock.TCP_SINCE, reason=f"Landlock ABI {ABI} knows no TCP")
def test_landlock_neither_binds_nor_connects_tcp(folder: Path) -> None:
    code = f"""{LANDLOCKED}
address = listener.getsockname()
print(tried(lambda: socket.create_connection(address)), tried(lambda: socket.create_server(("127.0.0.1", 0))))"""
    assert ran(folder, code) == "EACCES EACCES\n"


@needs_scopes
def test_landlock_lets_no_signal_and_no_abstract_socket_out(folder: Path) -> None:
    code = f"""
import os, socket, subprocess, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"\\0medic-" + str(os.getpid()).encode())
listener.listen()
inner = '''{LANDLOCKED}
address = b"\\\\0medic-" + str(parent).encode()
attempts = (lambda: os.kill(parent, 0), lambda: abstract.connect(address), lambda: os.kill(os.getpid(), 0))
print(*map(tried, attempts))'''
subprocess.run([sys.executable, "-c", inner], check=True)"""
    assert ran(folder, code) == "EPERM EPERM done\n"


# --- the filter of system calls by itself ----------------------------------------------------------------------------

FILTERED = f"""{TRIES}
terminal, _ = os.openpty()
forbid_new_privileges()
seccomp.restrict()
"""


def test_the_filter_refuses_every_socket_and_every_program(folder: Path) -> None:
    code = f"""{FILTERED}
families = [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET]
kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW]
print({{tried(lambda: socket.socket(family, kind)) for family in families for kind in kinds}}, tried(socket.socketpair))
print(tried(lambda: subprocess.run([program])), tried(lambda: os.execv(program, [program])))"""
    assert ran(folder, code) == "{'EPERM'} EPERM\nEPERM EPERM\n"


def test_the_filter_refuses_by_number_what_python_has_no_function_for(folder: Path) -> None:
    code = f"""{FILTERED}
column = {{"x86_64": 0, "aarch64": 1}}[os.uname().machine]
refused = [numbers[column] for numbers in seccomp.REFUSED.values() if numbers[column] is not None]
print({{tried(lambda: syscall(number, 0, 0, 0)) for number in refused}},
    {{tried(lambda: syscall(numbers[column], terminal, command, b"x"))
        for numbers, commands in seccomp.COMMANDS.values() for command in commands}})"""
    assert ran(folder, code) == "{'EPERM'} {'EPERM'}\n"


def test_the_filter_leaves_files_as_they_are_to_others(folder: Path) -> None:
    code = f"""{FILTERED}
opened = secret.open()
print({{*map(tried, [lambda: secret.chmod(0), lambda: os.fchmod(opened.fileno(), 0), lambda: os.chown(secret, 0, 0),
    lambda: os.truncate(secret, 0), lambda: os.utime(secret), lambda: os.setxattr(secret, "user.a", b"1")])}})"""
    before = (folder / "secret").stat()
    assert ran(folder, code) == "{'EPERM'}\n"
    after = (folder / "secret").stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)


def test_the_filter_lets_a_process_signal_itself_only(folder: Path) -> None:
    code = f"""{FILTERED}
print(*(tried(lambda: os.kill(process, 0)) for process in (parent, 0, -1, -os.getpgid(0), os.getpid())), flush=True)
os.abort()"""
    assert ran(folder, code, status=-signal.SIGABRT) == "EPERM EPERM EPERM EPERM done\n"


def test_the_filter_reaches_no_other_process_by_limits_scheduling_or_news_on_a_pipe(folder: Path) -> None:
    code = f"""{FILTERED}
reading, _ = os.pipe()
def limits(process): return resource.prlimit(process, resource.RLIMIT_CPU)
def cores(process): return os.sched_setaffinity(process, os.sched_getaffinity(0))
print({{*map(tried, [
    lambda: limits(parent), lambda: cores(parent), lambda: os.sched_setscheduler(parent, 0, os.sched_param(0)),
    lambda: os.setpriority(os.PRIO_PROCESS, parent, 19), lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, parent),
    lambda: fcntl.fcntl(reading, fcntl.F_SETSIG, 9), os.setsid, lambda: os.setpgid(0, 0)])}})
print({{*map(tried, [lambda: limits(0), lambda: limits(os.getpid()), lambda: cores(0),
    lambda: fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL))])}})"""
    assert ran(folder, code) == "{'EPERM'}\n{'done'}\n"


def test_what_a_confined_process_has_forked_ends_with_its_group(folder: Path) -> None:
    code = f"""{FILTERED}
if os.fork() == 0:
    tried(os.setsid)
    tried(lambda: os.setpgid(0, 0))
    time.sleep(60)
os._exit(0)"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "FOLDER": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=-1, process_group=0) as process:
        process.wait(60)
        assert process.stdout is not None
        os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout.read() == b""  # at its end once nobody holds it any more


def test_the_filter_leaves_files_threads_and_forks_alone_and_holds_in_them(folder: Path) -> None:
    code = f"""{FILTERED}
(own / "a").write_text("1")
thread = threading.Thread(target=lambda: print(tried(socket.socket), end=" ", flush=True))
thread.start()
thread.join()
if (child := os.fork()) == 0:
    print(tried(socket.socket), end=" ", flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], os.isatty(terminal))"""
    assert ran(folder, code) == "EPERM EPERM 0 True\n"


def interpreted(program: bytes, data: bytes) -> int:
    """Run a classic BPF program of the four instructions that ours has on a ``seccomp_data``."""
    lines = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = lines[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x35:
                at += if_true if value >= operand else if_false
            case 0x06:
                return operand
            case _:
                pytest.fail(f"instruction {code:#x}")


ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
SIGNALS = {"x86_64": {62, 234}, "aarch64": {129, 131}}
SETTINGS = {"x86_64": {302, 142, 144, 203, 314}, "aarch64": {261, 118, 119, 122, 274}}
COMMANDS = {
    "x86_64": {16: {0x5412, 0x541C}, 72: {8, 10, 15}},
    "aarch64": {29: {0x5412, 0x541C}, 25: {8, 10, 15}},
}
NUMBERS = st.sampled_from(sorted({*SIGNALS["x86_64"], *SIGNALS["aarch64"], *SETTINGS["x86_64"], *SETTINGS["aarch64"]}))
COMMANDED = st.sampled_from([16, 29, 72, 25])
WORDS = st.one_of(
    st.sampled_from([0x5412, 0x541C, 0x5401, 4, 8, 10, 15, 0, 1234, 1234 + 2**32]), st.integers(0, 2**64 - 1)
)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(
    foreign=st.booleans(),
    number=st.one_of(st.integers(0, 480), st.integers(0, 2**32 - 1), NUMBERS, COMMANDED),
    first=WORDS,
    second=WORDS,
)
def test_the_filter_decides_as_the_lists_say(machine: str, foreign: bool, number: int, first: int, second: int) -> None:
    own, column = ARCHITECTURES[machine]
    data = struct.pack("=IIQ6Q", number, 0x40000003 if foreign else own, 0, first, second, 0, 0, 0, 0)
    refused = (
        foreign
        or number >= 0x40000000
        or number in {numbers[column] for numbers in seccomp.REFUSED.values()}
        or (number in SIGNALS[machine] and first % 2**32 != 1234)
        or (number in SETTINGS[machine] and first % 2**32 not in (0, 1234))
        or second % 2**32 in COMMANDS[machine].get(number, ())
    )
    expected = 0x00050000 | errno.EPERM if refused else 0x7FFF0000
    assert interpreted(seccomp._assembled(machine, 1234), data) == expected


HEADERS = {
    "x86_64": next(Path("/usr/include").glob("**/asm/unistd_64.h"), None),
    "aarch64": next(Path("/usr/include").glob("asm-generic/unistd.h"), None),
}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = HEADERS[machine]
    if header is None:
        pytest.skip("no header of the kernel is installed")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    _, column = ARCHITECTURES[machine]
    commanded = {name: numbers for name, (numbers, _) in seccomp.COMMANDS.items()}
    given = {**seccomp.REFUSED, **seccomp.TO_ITSELF, **seccomp.OF_ITSELF, **commanded}
    ours = {name: each[column] for name, each in given.items()}
    assert len(ours.keys() & numbers.keys()) > 50
    assert {name: str(number) for name, number in ours.items() if name in numbers} == {
        name: numbers[name] for name in ours if name in numbers
    }
    unified = {name for name, number in ours.items() if number is not None and number >= 424}
    assert all(ours[name] is None or name in unified for name in ours.keys() - numbers.keys())


# --- both, and the self-test -----------------------------------------------------------------------------------------


def by_state(layers: tuple[SandboxLayer, ...]) -> dict[str, set[str]]:
    states: dict[str, set[str]] = {}
    for layer in layers:
        states.setdefault(layer.state, set()).add(layer.name)
    return states


def test_every_denial_that_the_kernel_has_is_active_with_pytorch_loaded() -> None:
    layers = probe(load=True)
    assert [layer.name for layer in layers] == list(get_args(Denial))
    found = by_state(layers)
    assert found.pop("active") == BY_OTHERS | (BY_LANDLOCK if ABI else set())
    assert "broken" not in found
    assert (lacking(layers) == "") == (ABI > 0)


CONFINED = f"""{TRIES}
from worker.sandbox.confine import confine
from worker.task import IntakeLimits

def confined():
    layers = confine(IntakeLimits(), readable=[given], writable=own, outside=secret)
    print(json.dumps([layer.model_dump() for layer in layers]))
"""


def layers_of(folder: Path, code: str) -> tuple[SandboxLayer, ...]:
    return tuple(map(SandboxLayer.model_validate, json.loads(ran(folder, CONFINED + code))))


def test_a_kernel_that_says_yes_and_denies_nothing_is_found_out(folder: Path) -> None:
    layers = layers_of(folder, "landlock.restrict, seccomp.restrict = lambda grants: 7, lambda: None\nconfined()")
    assert by_state(layers) == {"active": {"resources"}, "broken": {*get_args(Denial)} - {"resources"}}
    details = {layer.name: layer.detail for layer in layers}
    assert details["signals"] == "Landlock ABI 7, seccomp let it pass"


def test_threads_that_would_stay_free_are_said_and_nothing_is_claimed(folder: Path) -> None:
    waiting = "threading.Thread(target=threading.Event().wait, daemon=True).start()\nconfined()"
    layers = layers_of(folder, waiting)
    assert by_state(layers) == {"active": {"resources"}, "unavailable": {*get_args(Denial)} - {"resources"}}
    assert "threads" in layers[-1].detail


def test_what_cannot_be_tried_is_not_called_active(folder: Path) -> None:
    (folder / "secret").unlink()
    layers = {layer.name: layer for layer in layers_of(folder, "confined()")}
    assert layers["reading"].state == layers["writing"].state == "unavailable"
    assert "No such file" in layers["reading"].detail
    assert layers["udp"].state == "active"


@needs_landlock
def test_the_current_folder_and_one_that_holds_the_task_are_no_libraries(folder: Path) -> None:
    (folder / "task").mkdir()
    for name in ("current", "other"):
        (folder / name).mkdir()
        (folder / name / "module.py").touch()
    code = """
own = folder / "task"
sys.path[:1] = [str(folder / "current"), str(folder), str(folder / "other")]
confined()
print(*map(tried, [secret.read_text, given.read_text, *((folder / name / "module.py").read_text for name in
    ("current", "other"))]))"""
    *_, last = ran(folder, CONFINED + code).splitlines()
    assert last == "EACCES done EACCES done"


def test_a_self_test_that_crashes_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SelfTestFailedError, match="status 3"):
        probe()


# --- a kernel without ------------------------------------------------------------------------------------------------

WITHOUT_LANDLOCK = """
import os, sys
from worker.sandbox import seccomp
from worker.libc import forbid_new_privileges
seccomp.REFUSED = {"landlock_create_ruleset": (444, 444)}
forbid_new_privileges()
seccomp.restrict()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Has the kernel refuse Landlock to a program, as containers may."""


@contextmanager
def started(folder: Path, program: tuple[str, ...], **settings: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "MEDIC_DATA_DIR": str(folder), **settings}
    command = [sys.executable, "-c", WITHOUT_LANDLOCK, *program]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("program", [POLLING_WORKER, CELERY_WORKER], ids=["polling", "celery"])
def test_a_strict_worker_does_not_start_without_landlock_and_names_what_is_missing(
    program: tuple[str, ...], tmp_path: Path
) -> None:
    settings = {"MEDIC_BROKER_URL": "redis://127.0.0.1:1/0", "MEDIC_SANDBOX": "strict"}
    with started(tmp_path, program, **settings) as worker:
        said, _ = worker.communicate(timeout=60)
    assert worker.returncode == os.EX_CONFIG, said
    (line,) = [line for line in said.splitlines() if "does not start" in line]
    assert "MEDIC_SANDBOX=strict" in line
    assert "reading unavailable (Landlock: Operation not permitted)" in line
    assert "udp" not in line
    assert present(tmp_path) == ()


def test_another_worker_starts_without_landlock_and_says_so(tmp_path: Path) -> None:
    with started(tmp_path, POLLING_WORKER) as worker:
        assert worker.stdout is not None
        log = ""
        while "worker ready" not in log:
            line = worker.stdout.readline()
            assert line, log
            log += line
        (shown,) = present(tmp_path)
        worker.terminate()
        worker.wait(20)
    assert "sandbox: reading unavailable (Landlock: Operation not permitted)" in log
    assert "sandbox: udp active (seccomp)" in log
    assert shown.mode == "auto"
    assert {name for name, state in shown.layers.items() if state == "active"} == BY_OTHERS
    assert present(tmp_path) == ()


@pytest.mark.parametrize("sandbox", ["auto", "strict"])
def test_intake_that_has_to_be_confined_reads_nothing_when_it_is_not(sandbox: str, tmp_path: Path) -> None:
    task = {
        "job_id": "job_1",
        "spec": {"model": {"file_id": "f", "architecture": "medic/resnet8"}, "clean_data": {"file_id": "f"}},
        "inputs": {"model": str(tmp_path / "empty"), "clean": str(tmp_path / "empty")},
        "sandbox": sandbox,
    }
    (tmp_path / "empty").touch()
    (tmp_path / TASK_FILE).write_text(json.dumps(task))
    with started(tmp_path, ("-m", "worker.intake", str(tmp_path))) as intake:
        said, _ = intake.communicate(timeout=60)
    found = tmp_path / "prepared" / "intake.json"
    if sandbox == "strict":
        assert (intake.returncode, found.exists()) == (1, False)
        assert "is not confined: reading unavailable" in said
    else:
        assert (intake.returncode, said) == (0, "")
        assert "Landlock: Operation not permitted" in found.read_text()
