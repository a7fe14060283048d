"""A child of the supervisor that does what ``task.json`` says, instead of any work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.children import Events


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
            case "send":
                Events().send(argument)
            case "tell":
                Events().send({name: os.environ.get(name) for name in argument})
            case "say":
                os.write(2, argument.encode())
            case "close_events":
                os.close(int(os.environ["MEDIC_EVENTS_FD"]))
            case "spawn":
                grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                (Path(sys.argv[1]) / "grandchild").write_text(str(grandchild.pid))


if __name__ == "__main__":
    main()
