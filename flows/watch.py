"""`python -m flows.watch PID COMMAND…`: run a command; end its whole process group when process PID is gone, even by SIGKILL.

Start it in a session of its own. The pipeline runs DVC and the Prefect server under it, so that nothing outlives a run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def watched(command: list[str]) -> list[str]:
    """The command line that runs `command` for as long as this process lives."""
    return [sys.executable, "-m", "flows.watch", str(os.getpid()), *command]


def main() -> int:
    """Returns the command's exit code."""
    watched = int(sys.argv[1])
    child = subprocess.Popen(sys.argv[2:])
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        if os.getppid() != watched:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        time.sleep(0.2)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
