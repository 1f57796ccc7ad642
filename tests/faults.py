"""A proxy before an S3 endpoint that spoils what it is told to: errors, cut connections, slowness, by a seeded draw."""

from __future__ import annotations

import http.client
import random
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Faults:
    """Shares of requests that fail, by kind, and how much went through."""

    errors: float = 0.0
    """Answered with 503 and never passed on."""
    lost: float = 0.0
    """Passed on, but the connection is closed instead of the answer."""
    cut: float = 0.0
    """Answered up to the middle of the body."""
    pause: float = 0.0
    """Seconds before each answer."""
    requests: int = 0
    spoilt: int = 0
    sent: int = 0
    """Bytes of bodies sent to clients."""
    random: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self) -> str:
        with self.lock:
            self.requests += 1
            u, kind = self.random.random(), "none"
            for name in ("errors", "lost", "cut"):
                if u < getattr(self, name):
                    kind = name
                    break
                u -= getattr(self, name)
            self.spoilt += kind != "none"
            return kind


@contextmanager
def faulty(port: int, faults: Faults):
    """The proxy's address, before the endpoint on `port`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = faults.draw()
            time.sleep(faults.pause)
            if kind == "errors":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host too: the signature covers it
                upstream.putheader(name, value)
            upstream.endheaders(body)
            told = upstream.getresponse()
            data = told.read()
            upstream.close()
            if kind == "lost":
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(told.status)
            for name, value in told.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = told.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            if kind == "cut" and len(data) > 1:
                data = data[: len(data) // 2]
                self.close_connection = True
            faults.sent += len(data)
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def handle(self) -> None:
            with suppress(OSError, ValueError):
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
