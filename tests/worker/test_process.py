from __future__ import annotations

import subprocess
import sys

LOCKED = """
import signal, threading
from worker.process import set_on_signal

event = threading.Event()
set_on_signal(event, signal.SIGTERM)
with threading._shutdown_locks_lock:
    signal.raise_signal(signal.SIGTERM)
print(event.wait(10))
"""


def test_a_signal_is_heard_whatever_the_interpreter_is_at() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
