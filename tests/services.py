"""Single servers of the platform, as `make up` starts them, for tests that need one and no more."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from infra import local

PROGRAMS = {"postgres": "postgres", "s3": "weed"}


def here(name):
    """Whether the server's program is on this machine."""
    try:
        local._program(PROGRAMS[name])
    except local.TopologyError:
        return False
    return True


def until(condition, seconds=120):
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def service(name):
    """The topology of a folder of its own, in which this server alone runs."""
    root = Path(tempfile.mkdtemp(prefix=f"ip2p-{name}-"))  # not pytest's: Postgres, which is another user, must be able to enter
    root.chmod(0o755)
    topology = local.Topology.new(root, preferred={})
    if name == "postgres":
        local._prepare_postgres(topology)
    wanted = next(s for s in local.services(topology) if s.name == name)
    local._start(topology, wanted)
    try:
        local._wait(topology, wanted)
        if name == "postgres":
            local._create_databases(topology)
        yield topology
    finally:
        local._end(local._pid(topology, name), signal.SIGINT, wanted.patience)
        shutil.rmtree(root, ignore_errors=True)
