"""Named points in the processes of a service at which they can be made to fail, without a word of it in their code.

Every process loads this at its start (see ``hook``), wraps the functions that ``POINTS`` names when their modules are
imported, and at each looks for the file ``armed`` in ``$FAULTS_FOLDER``. Whoever reaches the point that it names
removes the file and fails; so a fault strikes one process once, unless it is ``lasting``. With ``$FAULTS_STAND_IN`` the
children of a worker are `benchmarks.faults.stand_in`.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, NoReturn

Role = Literal["api", "worker", "intake", "trainer", "other"]

_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "api": "api",
        "worker": "worker",
        "celery": "worker",
        "worker.sweep": "worker",
        "worker.intake": "intake",
        "worker.trainer": "trainer",
    }
)
_CREATE, _ADD_FILE = "jobs.tenant:TenantStore.create", "jobs.tenant:TenantStore.add_file"
_FINISH, _SAVE = "jobs.store:JobStore.finish", "jobs.store:JobStore.save_checkpoint"
_PUBLISH, _SYNC = "jobs.artifacts:FolderStore._publish", "jobs.artifacts:sync_folder"

POINTS: Sequence[str] = (
    # an upload: fsynced; renamed; folder synced, no record; record written, no commit; committed, not answered
    *(f"api before {_PUBLISH}", f"api before {_SYNC}", f"api after {_PUBLISH}"),
    *(f"api before {_ADD_FILE}", f"api in {_ADD_FILE}", f"api after {_ADD_FILE}"),
    # a job is posted
    *("api after jobs.tenant:TenantStore.reserve", f"api before {_CREATE}", f"api in {_CREATE}"),
    *(f"api after {_CREATE}", "api after jobs.queue:CeleryQueue.announce"),
    # a worker takes it, and fetches its files
    *("worker before jobs.store:JobStore.claim", "worker in jobs.store:JobStore.claim"),
    *("worker after jobs.store:JobStore.claim", "worker before worker.supervise:run_child"),
    # intake, its end, and what it found
    *("intake before worker.sandbox.confine:confine", "worker before jobs.store:JobStore.inspected"),
    *("worker in jobs.store:JobStore.inspected", "worker after jobs.store:JobStore.inspected"),
    # training, and a checkpoint on its way into the row
    *("trainer before worker.sanitize:sanitize", "trainer before worker.children:Events.send"),
    *(f"worker before {_PUBLISH}", f"worker before {_SYNC}", f"worker after {_PUBLISH}"),
    *(f"worker before {_SAVE}", f"worker in {_SAVE}", f"worker after {_SAVE}"),
    *("trainer before worker.sanitize:_write_weights", "trainer after worker.sanitize:_write_weights"),
    # the end: some artifacts stored; all, no commit; half a commit; committed, and nobody heard
    f"worker after {_PUBLISH} #4",  # the first three are checkpoints
    *(f"worker before {_FINISH}", f"worker in {_FINISH}", f"worker after {_FINISH}"),
    # a sweep
    *("worker before jobs.store:JobStore.sweep", "worker in jobs.store:JobStore.sweep"),
)
"""``<role> before|in|after <module>:<function>``; ``in``: in its transaction, just before that commits.

With ``#<n>`` the n-th time that someone comes there; ``EPOCHS`` decides how often that is."""

_folder = Path(os.environ.get("FAULTS_FOLDER", "/nonexistent"))
_inside = threading.local()


def arm(folder: Path, point: str, *, action: str = "die", job: str = "", lasting: bool = False) -> None:
    """Have the process that next reaches ``point`` fail; only as a child of ``job`` where one is named."""
    place, _, times = point.partition(" #")
    _write(folder, {"point": place, "times": int(times or 1), "action": action, "job": job, "lasting": lasting})


def _write(folder: Path, fault: Mapping[str, Any]) -> None:
    (folder / "arming").write_text(json.dumps(fault))
    (folder / "arming").replace(folder / "armed")


def is_armed(folder: Path) -> bool:
    """Whether a fault has not struck yet."""
    return (folder / "armed").exists()


def disarm(folder: Path) -> None:
    """Take a fault back."""
    (folder / "armed").unlink(missing_ok=True)


def install() -> None:
    """Wrap every point of this process's role as its module is imported."""
    role = _role()
    wanted: dict[str, set[str]] = {}
    for point in POINTS:
        of, _, target = point.split(" ")[:3]
        if of == role:
            module, _, function = target.partition(":")
            wanted.setdefault(module, set()).add(function)
    if role != "other":
        sys.meta_path.insert(0, _Wrapping(role, wanted))


def _role() -> Role:
    arguments = sys.orig_argv
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    return _ROLES.get(module, "other")


class _Wrapping(MetaPathFinder):
    def __init__(self, role: Role, wanted: Mapping[str, set[str]]) -> None:
        self._role, self._wanted = role, wanted

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._wanted and name != "jobs.database":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            if name == "jobs.database":
                _listen_to_commits(self._role)
            for function in self._wanted.get(name, ()):
                _wrap(module, function, f"{name}:{function}", self._role)
            if name == "worker.supervise" and "FAULTS_STAND_IN" in os.environ:
                _stand_in(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType, function: str, target: str, role: Role) -> None:
    owner: Any = module
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        _strike(f"{role} before {target}")
        outer, _inside.target = getattr(_inside, "target", None), target
        try:
            result = original(*arguments, **named)
        finally:
            _inside.target = outer
        _strike(f"{role} after {target}")
        return result

    setattr(owner, name, wrapped)


def _stand_in(module: Any) -> None:
    run_child = module.run_child
    module.run_child = lambda _, *rest, **named: run_child("benchmarks.faults.stand_in", *rest, **named)


def _listen_to_commits(role: Role) -> None:
    from sqlalchemy import Engine, event

    def before_commit(_connection: object) -> None:
        if target := getattr(_inside, "target", None):
            _strike(f"{role} in {target}")

    event.listen(Engine, "commit", before_commit)


def _strike(point: str) -> None:
    try:
        fault = json.loads((_folder / "armed").read_text())
    except OSError:  # none is armed, or this process may not look
        return
    if fault["point"] != point or fault["job"] not in sys.argv[-1]:
        return
    if fault["times"] > 1:
        _write(_folder, {**fault, "times": fault["times"] - 1})
        return
    if not fault["lasting"]:
        try:
            (_folder / "armed").unlink()
        except OSError:  # it struck someone else
            return
    ACTIONS[fault["action"]]()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


def _crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def _exhaust_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**26, used + 2**26))
    bytearray(2**30)


def _hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def _spin() -> None:
    while True:
        pass


def _fill_the_disk() -> None:
    with (Path(sys.argv[-1]) / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(2**20))


ACTIONS: Mapping[str, Callable[[], object]] = MappingProxyType(
    {
        "die": _die,
        "crash": _crash,
        "exhaust_memory": _exhaust_memory,
        "hang": _hang,
        "spin": _spin,
        "fill_the_disk": _fill_the_disk,
    }
)
"""What a process may do when a fault strikes it; ``hang`` ignores SIGTERM."""
