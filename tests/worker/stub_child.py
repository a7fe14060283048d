"""A child of the supervisor that does what ``task.json`` says, instead of any work."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from worker.children import Events
from worker.task import Advanced, Checkpointed


def main() -> None:
    for action, argument in json.loads((Path(sys.argv[1]) / "task.json").read_text()):
        match action:
            case "exit":
                sys.exit(argument)
            case "signal":
                os.kill(os.getpid(), argument)
            case "hang":
                time.sleep(600)
            case "ignore_sigterm":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "advance":
                Events().send(Advanced(phase=argument))
            case "checkpoint":
                Events().send(Checkpointed(epoch=argument))
            case "write_event":
                os.write(int(os.environ["MEDIC_EVENTS_FD"]), argument.encode())
            case "tell":
                told = {name: os.environ.get(name) for name in argument}
                (Path(sys.argv[1]) / "told.json").write_text(json.dumps(told))
            case "list_descriptors":
                (Path(sys.argv[1]) / "descriptors.json").write_text(json.dumps(_open_pipes()))
            case "say":
                os.write(2, argument.encode())
            case "close_events":
                os.close(int(os.environ["MEDIC_EVENTS_FD"]))
            case "spawn":
                grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                (Path(sys.argv[1]) / "grandchild").write_text(str(grandchild.pid))


def _open_pipes() -> list[int]:
    """Descriptors of this process that lead to another."""
    kinds = {
        int(entry.name): os.fstat(int(entry.name)).st_mode
        for entry in Path("/proc/self/fd").iterdir()
        if entry.exists()
    }
    return sorted(number for number, mode in kinds.items() if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


if __name__ == "__main__":
    main()
