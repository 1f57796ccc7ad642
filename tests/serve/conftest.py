"""A real server on a free loopback port, in this process, with the nudged editor; and pictures to send."""

from __future__ import annotations

import io
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from PIL import Image

from ip2p.params import ServeParams
from ip2p.serve.app import make_app
from ip2p.serve.wire import configured


def png(size=(120, 90), color="seagreen", mode="RGB", **how) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, how.pop("format", "PNG"), **how)
    return buffer.getvalue()


class Server:
    """A server that runs, its app and its address."""

    def __init__(self, app, url, uvicorn_server):
        self.app, self.url, self.uvicorn = app, url, uvicorn_server
        self.desk, self.client = app.state.desk, httpx.Client(base_url=url, timeout=60)

    def edit(self, **fields):
        """Ask by our own door and wait; returns the edit as it is told."""
        fields = {"instruction": "make it winter", "steps": "2"} | {k: str(v) for k, v in fields.items()}
        told = self.client.post("/api/v1/edits", files={"image": png()}, data=fields)
        assert told.status_code == 202, told.text
        return self.wait(told.json()["id"])

    def wait(self, id, *states):
        for _ in range(3000):
            told = self.client.get(f"/api/v1/edits/{id}").json()
            if told["state"] in (states or ("done", "failed", "cancelled")):
                return told
            time.sleep(0.02)
        raise AssertionError(told)


@contextmanager
def running(params, root, *, keys=()):
    """Run the server for the time of the context."""
    app = make_app(params, keys=keys, work=root / "versions")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(configured(app, log_level="error", timeout_graceful_shutdown=20))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Server(app, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def ready(server):
    for _ in range(2400):
        if server.client.get("/readyz").status_code == 200:
            return server
        time.sleep(0.05)
    raise AssertionError("no editor was loaded")


def serving(tiny, root, editor_folder, **section):
    """Parameters of a server of its own."""
    given = {
        "editor": str(editor_folder),
        "database": f"sqlite:///{root}/edits.db",
        "pictures": str(root / "pictures"),
        "poll_seconds": 0.1,
        "queue": 4,
        "max_pixels": 1_000_000,
        "max_megabytes": 2,
    }
    return tiny.model_copy(update={"serve": ServeParams(**(given | section))})


@pytest.fixture(scope="module")
def server(tiny, editor_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    with running(serving(tiny, root, editor_folder), root) as server:
        yield ready(server)
