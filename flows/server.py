"""One Prefect server for a whole run: the one at PREFECT_API_URL, or one started here on a free loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.watch import watched
from ip2p.errors import UserError


@contextmanager
def prefect_server(home: Path = Path("work/prefect")) -> Iterator[None]:
    """Make sure that a server answers at PREFECT_API_URL for as long as the context lasts.

    Must be entered before Prefect is first imported, which reads the address then.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(watched(command), stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", server, home / "server.log")
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        yield
    finally:
        for name in ("PREFECT_API_URL", "PREFECT_HOME"):
            os.environ.pop(name, None)
        _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server's process group: ask, wait, then insist."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, sign)
                server.wait(timeout=15)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise UserError(f"the Prefect server did not start; see {log}")
